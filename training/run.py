"""One adapter from beginning to end: pairs in, a folder out.

Owns the order of the steps (encode, base answers, references, training, writing) and the
atomic writing of the result. Refuses how each step is done. The folder `out` is either
there whole or not at all: it is written under another name beside it and renamed.
"""

import importlib.metadata
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save
from transformers import set_seed

from adapters.artifact import Manifest, write_manifest
from training.anchors import base_answers
from training.config import BAPOConfig
from training.data import PreferencePair, load_pairs, pairs_digest
from training.encoding import EncodedPair, encode_pairs
from training.errors import ConfigError, DataError, ModelError
from training.model import ResidentBase, load_base, reference, trainable
from training.progress import TrainingBar, bar
from training.scoring import score_pairs
from training.trainer import BAPOTrainer

PARITY_PAIRS = 4
"""Pairs on which a saved adapter is compared with the trained one."""


@dataclass(frozen=True)
class TrainResult:
    """A finished adapter: its folder, its manifest, and the seconds each part took."""

    out: Path
    manifest: Manifest
    metrics: dict[str, float]
    seconds: dict[str, float]


def train_adapter(
    model: ResidentBase | str | Path,
    pairs: Sequence[PreferencePair] | str | Path,
    out: str | Path,
    config: BAPOConfig | None = None,
    *,
    name: str | None = None,
    overwrite: bool = False,
    label: str | None = None,
) -> TrainResult:
    """Train one adapter and write it to `out` as a PEFT folder with a manifest.

    `model` may be a base already in memory, which is left as it was; a folder or Hub name
    is loaded for this one run. `pairs` may be a JSONL file. `name` (default: the folder's)
    goes into the manifest. `label` shows progress bars under that text.

    Raises TrainingError and the adapters' errors, each one sentence, before anything is
    written; OSError where the disk fails, with nothing left behind.
    """
    config = config or BAPOConfig()
    target = Path(out).absolute()
    _refuse_existing(target, overwrite)
    data = load_pairs(pairs) if isinstance(pairs, str | Path) else list(pairs)
    if not data:
        raise DataError("There are no preference pairs to train on.")
    base = model if isinstance(model, ResidentBase) else load_base(model, cpu=config.use_cpu)
    clock = _Clock()
    encoded = encode_pairs(
        base.tokenizer,
        data,
        max_prompt_length=config.max_prompt_length,
        max_completion_length=config.max_completion_length,
    )
    if config.anchored:
        encoded = _anchor(base, encoded, config, label)
    _refuse_past_window(base, encoded)
    clock.lap("base answers")
    set_seed(config.seed)
    with trainable(base, config) as policy:
        metrics = _fit(policy, base, encoded, config, label)
        clock.lap("training")
        manifest = _manifest(name or target.name, base, data, encoded, config, metrics)
        _write(policy, manifest, encoded[:PARITY_PAIRS], target)
    clock.lap("writing")
    return TrainResult(target, manifest, metrics, clock.laps)


def _anchor(
    base: ResidentBase, pairs: list[EncodedPair], config: BAPOConfig, label: str | None
) -> list[EncodedPair]:
    with bar(label and f"{label}: base answers") as show:
        answers = base_answers(base, [pair.prompt for pair in pairs], config, on_progress=show)
    return [pair.anchored_on(a.tokens) for pair, a in zip(pairs, answers, strict=True)]


def _fit(
    policy: PeftModel,
    base: ResidentBase,
    pairs: list[EncodedPair],
    config: BAPOConfig,
    label: str | None,
) -> dict[str, float]:
    """Train, and say how it ended: the means over the last epoch's pairs."""
    with bar(label) as show:
        progress = TrainingBar(show)
        trainer = BAPOTrainer(policy, config, pairs, callbacks=[progress], tokenizer=base.tokenizer)
        progress.figures = trainer.recent
        output = trainer.train()
    return {
        "train/loss": output.training_loss,
        "train/steps": float(output.global_step),
        "train/seconds": output.metrics["train_runtime"],
        **{f"train/{name}": value for name, value in trainer.last_epoch().items()},
    }


def _manifest(
    name: str,
    base: ResidentBase,
    data: list[PreferencePair],
    encoded: list[EncodedPair],
    config: BAPOConfig,
    metrics: dict[str, float],
) -> Manifest:
    record: dict[str, Any] = {
        "name": name,
        "base": {"name": base.info.name, "fingerprint": base.info.fingerprint},
        "method": config.method,
        "hyperparameters": config.hyperparameters(),
        "data": {
            "sha256": pairs_digest(data).removeprefix("sha256:"),
            "pairs": len(data),
            "prompts": len({pair.prompt for pair in encoded}),
            "tokens": sum(map(len, encoded)),
        },
        "metrics": metrics,
        "versions": {p: importlib.metadata.version(p) for p in ("torch", "transformers", "peft")},
        "seed": config.seed,
        "created": datetime.now(UTC),
    }
    return Manifest.model_validate(record)


def _write(policy: PeftModel, manifest: Manifest, sample: list[EncodedPair], target: Path) -> None:
    """Write the folder beside its place, make it durable, and rename it into place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        _write_peft(policy, manifest.base.name, draft)
        _check_parity(policy, draft, sample)
        write_manifest(draft, manifest)
        for path in (*draft.iterdir(), draft):
            _sync(path)
        _replace(draft, target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _write_peft(policy: PeftModel, base_name: str, folder: Path) -> None:
    """PEFT's own layout, without the model card that its `save_pretrained` adds."""
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


def _check_parity(policy: PeftModel, folder: Path, pairs: list[EncodedPair]) -> None:
    """Raise ModelError unless the saved adapter scores as the trained one, and not as the base."""
    trained = score_pairs(policy, pairs)  # (n, K)
    with reference(policy):
        untouched = score_pairs(policy, pairs)
    policy.load_adapter(str(folder), adapter_name="saved")
    policy.set_adapter("saved")
    saved = score_pairs(policy, pairs)
    if not torch.allclose(saved, trained, atol=1e-3, rtol=1e-4):
        raise ModelError("The saved adapter does not score as the trained one; nothing was kept.")
    if torch.equal(saved, untouched):
        raise ModelError("The adapter scores as the base does; raise learning_rate.")


def _replace(draft: Path, target: Path) -> None:
    """Put `draft` in the place of `target`; what was there goes only once the new is in."""
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.exists():
        target.rename(old)
    draft.rename(target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _refuse_existing(target: Path, overwrite: bool) -> None:
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise ConfigError(f"{target} is not empty; choose another folder or give --overwrite.")
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target} is a file; choose another place for the adapter.")


def _refuse_past_window(base: ResidentBase, pairs: list[EncodedPair]) -> None:
    """Longer than the model's context or its sliding window, scores would not be exact."""
    longest = max(len(p.prompt) + max(map(len, p.branches)) for p in pairs)
    settings = base.model.config
    limits = [settings.max_position_embeddings]
    if getattr(settings, "use_sliding_window", True) and getattr(settings, "sliding_window", None):
        limits.append(settings.sliding_window)
    if longest > min(limits):
        raise DataError(
            f"The longest prompt and answer have {longest} tokens together, the model reads"
            f" {min(limits)}; shorten the data or anchor_max_new_tokens."
        )


class _Clock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now
