"""Is a folder from a stranger a LoRA that this base can serve, safely and rightly?

Owns every check on untrusted bytes, made before an engine sees them: what vLLM refuses with an
opaque error, and what it serves silently wrong. Refuses to change anything (`normalise.py` does).
Memory is bounded by the largest single tensor. As many problems as can be told are told at once.
"""

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydantic import BaseModel, ConfigDict

from adapters.artifact import ADAPTER_FILES, CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, read_manifest
from adapters.base import BaseModelInfo
from adapters.errors import IncompatibleBase, InvalidAdapter
from adapters.files import open_regular, read_regular
from adapters.strictjson import Malformed, parse_object
from adapters.tensorfile import Floats, TensorEntry, read_floats, read_header

MAX_CONFIG_BYTES = 2**20
KEY_PREFIX = "base_model.model."
SIDES = {".lora_A.weight": "A", ".lora_B.weight": "B"}

# Settings whose adapters vLLM refuses or serves wrongly, each with what to do instead.
UNSUPPORTED: dict[str, str] = {
    "use_dora": "train without DoRA",
    "lora_bias": "train with lora_bias=False",
    "modules_to_save": "train without modules_to_save; only LoRA weights can be served",
    "alora_invocation_tokens": "train without aLoRA",
    "trainable_token_indices": "train without trainable tokens",
    "layer_replication": "train without layer_replication",
    "rank_pattern": "use one rank for all layers",
    "alpha_pattern": "use one lora_alpha for all layers",
    "target_parameters": "target modules, not parameters",
    "use_bdlora": "train without block-diagonal LoRA",
    "megatron_config": "train without megatron_config",
}
CONVERTED_INITS = ("pissa", "olora", "corda", "loftq", "eva", "lora_ga")


class Limits(BaseModel):
    """What an upload may be at most."""

    model_config = ConfigDict(frozen=True)

    max_rank: int = 64
    max_bytes: int = 512 * 2**20
    max_delta_ratio: float = 10.0
    """Largest ‖ΔW‖_F / ‖W‖_F of a layer, bounded by ‖A‖_F·‖B‖_F·scale. Adapters trained on the
    pocket model stay below 1; a change ten times the weights is no personal preference, and what
    overflows an engine (1e30 and the like) is far above."""


@dataclass(frozen=True)
class ValidationReport:
    """What was found in an acceptable adapter."""

    rank: int
    scale: float
    modules: tuple[str, ...]
    parameters: int
    bytes: int
    warnings: tuple[str, ...] = ()


def validate(folder: Path, base: BaseModelInfo, limits: Limits) -> ValidationReport:
    """Check the adapter in `folder` against `base`. Raises InvalidAdapter, IncompatibleBase."""
    _check_listing(folder)
    warnings = _check_manifest(folder, base)
    config = read_config(folder)
    problems = config_problems(config, limits)
    if problems:
        raise InvalidAdapter(problems)
    rank, scale = int(config["r"]), scale_of(config)
    try:
        file, size = open_regular(folder / WEIGHTS_FILE)
    except Malformed as error:
        raise InvalidAdapter([f"{WEIGHTS_FILE} {error}"]) from None
    with file:
        if size > limits.max_bytes:
            raise InvalidAdapter(
                [f"{WEIGHTS_FILE} is {size} bytes long, more than the {limits.max_bytes} allowed"]
            )
        try:
            header = read_header(file, size)
            pairs = _pairs(list(header), base, rank)
            _check_values(file, pairs, scale, base, limits)
        except Malformed as error:
            raise InvalidAdapter([f"{WEIGHTS_FILE} {error}"]) from None
    parameters = sum(entry.elements for entry in header)
    return ValidationReport(rank, scale, tuple(sorted(pairs)), parameters, size, tuple(warnings))


def read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json of an untrusted folder. Raises InvalidAdapter."""
    try:
        text = read_regular(folder / CONFIG_FILE, max_bytes=MAX_CONFIG_BYTES)
        return parse_object(text, max_bytes=MAX_CONFIG_BYTES)
    except Malformed as error:
        raise InvalidAdapter([f"{CONFIG_FILE} {error}"]) from None


def scale_of(config: dict[str, Any]) -> float:
    """What B·A is multiplied by: alpha / r, or alpha / √r for rank-stabilised LoRA."""
    rank = config["r"]
    return float(config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank))


def config_problems(config: dict[str, Any], limits: Limits) -> list[str]:
    """Everything in adapter_config.json that cannot be served, one clause each."""
    problems = []
    if config.get("peft_type") != "LORA":
        problems.append(f"peft_type is {config.get('peft_type')!r}: only LORA can be served")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        problems.append(f"r is {rank!r}: it must be a whole number from 1")
    elif rank > limits.max_rank:
        problems.append(f"r is {rank}, this server takes ranks up to {limits.max_rank}")
    if type(alpha) not in (int, float) or not 0 < alpha < math.inf:
        problems.append(f"lora_alpha is {alpha!r}: it must be a number above 0")
    if type(config.get("use_rslora", False)) is not bool:
        problems.append("use_rslora must be true or false")
    if config.get("bias", "none") != "none":
        problems.append(f"bias is {config['bias']!r}: train with bias='none'")
    problems += [
        f"{name} is set: {advice}" for name, advice in UNSUPPORTED.items() if config.get(name)
    ]
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(CONVERTED_INITS):
        problems.append(
            f"init_lora_weights is {init!r}, which changes the base: convert the adapter to plain "
            "LoRA when saving (path_initial_model_for_weight_conversion in PEFT)"
        )
    return problems


def _check_listing(folder: Path) -> None:
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise InvalidAdapter([f"the folder cannot be read ({error.strerror})"]) from None
    extra = [name for name in names if name not in ADAPTER_FILES]
    if extra:
        raise InvalidAdapter(
            [f"{name[:80]!r} is not accepted: send {', '.join(ADAPTER_FILES)}" for name in extra]
        )


def _check_manifest(folder: Path, base: BaseModelInfo) -> list[str]:
    manifest = read_manifest(folder)
    if manifest is None:
        return [f"there is no {MANIFEST_FILE}: whether it was made for this base is not known"]
    if manifest.base.fingerprint != base.fingerprint:
        raise IncompatibleBase(
            [
                f"it was made for the base model {manifest.base.name!r} "
                f"({manifest.base.fingerprint[:19]}…), this is {base.name!r} "
                f"({base.fingerprint[:19]}…)"
            ]
        )
    if manifest.base.name != base.name:
        return [f"it calls the same base model {manifest.base.name!r}"]
    return []


def _pairs(
    entries: list[TensorEntry], base: BaseModelInfo, rank: int
) -> dict[str, dict[str, TensorEntry]]:
    """Module → its A and B; exactly LoRA tensors of the base's own layers, shapes and all."""
    found: dict[str, dict[str, TensorEntry]] = defaultdict(dict)
    problems = []
    for entry in entries:
        module, side = module_and_side(entry.name)
        shape = base.modules.get(module)
        if side is None or shape is None:
            problems.append(f"the tensor {entry.name[:120]!r} belongs to no layer of {base.name}")
            continue
        wanted = (rank, shape[1]) if side == "A" else (shape[0], rank)
        if entry.shape != wanted:
            problems.append(
                f"{entry.name[:120]!r} has shape {list(entry.shape)}, not {list(wanted)}"
            )
        found[module][side] = entry
    problems += [
        f"{module} has only lora_{next(iter(sides))}"
        for module, sides in found.items()
        if len(sides) == 1
    ]
    if not entries:
        problems.append(f"{WEIGHTS_FILE} holds no tensor")
    if problems:
        raise InvalidAdapter(problems)
    return dict(found)


def module_and_side(key: str) -> tuple[str, str | None]:
    """`base_model.model.<module>.lora_A.weight` → (<module>, "A"); side None for other keys."""
    for suffix, side in SIDES.items():
        if key.startswith(KEY_PREFIX) and key.endswith(suffix):
            return key[len(KEY_PREFIX) : -len(suffix)], side
    return key, None


def _check_values(
    file: BinaryIO,
    pairs: dict[str, dict[str, TensorEntry]],
    scale: float,
    base: BaseModelInfo,
    limits: Limits,
) -> None:
    """Every number finite, and no layer changed beyond the bound."""
    problems = []
    changes = False
    for module, sides in pairs.items():
        norms = []
        for entry in sides.values():
            values = read_floats(file, entry)
            if not np.isfinite(values).all():
                problems.append(f"{entry.name!r} holds NaN or infinity")
            norms.append(_norm(values))
        delta = norms[0] * norms[1] * scale
        changes = changes or delta > 0
        weight = base.norms.get(module)
        if weight and delta > limits.max_delta_ratio * weight:
            problems.append(
                f"{module} would change by up to {delta / weight:.3g} times its weights, more "
                f"than the {limits.max_delta_ratio:g} allowed"
            )
    if not changes and not problems:
        problems.append("every layer's change is zero: it would answer like the base")
    if problems:
        raise InvalidAdapter(problems)


def _norm(values: Floats) -> float:
    """Frobenius norm in double precision: float32 overflows on squares of 1e30."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sqrt(np.sum(np.square(values, dtype=np.float64))))
