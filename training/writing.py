"""A trained adapter to a folder that PEFT, TRL and vLLM load as it is.

Owns the files and that they appear together or not at all: everything is written under
another name beside its place, checked, made durable and renamed; what a killed process left
under such a name is put back or removed by the next one. Refuses training.
"""

import os
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save

from adapters.artifact import Manifest, write_manifest
from adapters.base import BaseModelInfo
from adapters.errors import InvalidAdapter
from adapters.validation import Limits, validate
from training.card import model_card
from training.encoding import EncodedPair
from training.errors import ConfigError, ModelError
from training.history import write_history
from training.model import reference
from training.scoring import score_pairs

PARITY_PAIRS = 4
"""Pairs on which a saved adapter is compared with the trained one."""
PARITY_NATS = 1e-3
"""How far apart the two may score an answer (rounding of other kernels), or ..."""
PARITY_SHARE = 0.01
"""... this share of what the adapter changes at all."""


DRAFT, OLD = "tmp", "old"
"""What a process adds to an adapter's name while it writes, and while it replaces another."""


def recover(folder: Path, names: Collection[str]) -> None:
    """Put right what killed processes left of these adapters in `folder`.

    An adapter that was being replaced is put back; a draft is removed.
    """
    for left in list(folder.glob(".*.*.*")):
        name, number, kind = left.name[1:].rsplit(".", 2)
        if name not in names or kind not in (DRAFT, OLD) or _is_running(number):
            continue
        if kind == OLD and not (folder / name).exists():
            left.rename(folder / name)
        else:
            shutil.rmtree(left, ignore_errors=True)


def refuse_existing(target: Path, *, overwrite: bool) -> None:
    """Raise ConfigError where something stands that was not to be replaced."""
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise ConfigError(f"{target} is not empty; choose another folder or give --overwrite.")
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target} is a file; choose another place for the adapter.")


def write_adapter(
    policy: PeftModel,
    manifest: Manifest,
    history: Mapping[str, Any],
    sample: Sequence[EncodedPair],
    target: Path,
    *,
    base: BaseModelInfo,
    max_rank: int,
) -> None:
    """Write adapter, manifest, history and model card; `sample` is what parity is checked on.

    Raises ModelError where the training changed nothing, where the saved adapter does not
    score as the trained one, or where a server of `base` with `max_rank` would not take it;
    OSError where the disk fails. Either way nothing is left.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = _beside(target, DRAFT)
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        _write_peft(policy, manifest.base.name, draft)
        _check_parity(policy, draft, sample[:PARITY_PAIRS])
        write_manifest(draft, manifest)
        write_history(draft, history)
        (draft / "README.md").write_bytes(model_card(manifest).encode())
        _check_served(draft, base, max_rank)
        for path in (*draft.iterdir(), draft):
            _sync(path)
        _replace(draft, target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _write_peft(policy: PeftModel, base_name: str, folder: Path) -> None:
    """PEFT's own layout; the model card that its `save_pretrained` adds is ours."""
    lora = policy.peft_config["default"]
    lora.base_model_name_or_path = base_name
    lora.inference_mode = True
    lora.save_pretrained(str(folder))
    weights = get_peft_model_state_dict(policy, save_embedding_layers=False)
    if not any(name.endswith("lora_B.weight") and t.any() for name, t in weights.items()):
        raise ModelError("The training changed nothing; raise learning_rate or num_train_epochs.")
    tensors = {key: tensor.detach().contiguous().cpu() for key, tensor in weights.items()}
    # Bytes first: safetensors' own writer hides a full disk behind an error of its own.
    (folder / "adapter_model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))


def _check_parity(policy: PeftModel, folder: Path, pairs: Sequence[EncodedPair]) -> None:
    """Raise ModelError unless the saved adapter scores as the trained one, and not as the base."""
    trained = score_pairs(policy, pairs)  # (n, K)
    with reference(policy):
        untouched = score_pairs(policy, pairs)
    policy.load_adapter(str(folder), adapter_name="saved")
    policy.set_adapter("saved")
    saved = score_pairs(policy, pairs)
    effect = (trained - untouched).abs().max()
    if (saved - trained).abs().max() > max(PARITY_NATS, PARITY_SHARE * effect):
        raise ModelError("The saved adapter does not score as the trained one; nothing was kept.")
    if torch.equal(saved, untouched):
        raise ModelError("The adapter scores as the base does; raise learning_rate.")


def _check_served(folder: Path, base: BaseModelInfo, max_rank: int) -> None:
    """What a server checks of every upload; its limit of bytes is its own."""
    try:
        validate(folder, base, Limits(max_rank=max_rank, max_bytes=sys.maxsize))
    except InvalidAdapter as error:
        raise ModelError(f"What was trained was not kept. {error}") from error


def _replace(draft: Path, target: Path) -> None:
    """Put `draft` in the place of `target`; what was there goes only once the new is in."""
    old = _beside(target, OLD)
    if target.exists():
        target.rename(old)
    draft.rename(target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _beside(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.{kind}")


def _is_running(number: str) -> bool:
    """Whether another process has this number; this one writes nothing while it looks."""
    return not number.isdecimal() or (int(number) != os.getpid() and psutil.pid_exists(int(number)))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
