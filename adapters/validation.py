"""Is a folder from a stranger a LoRA that this base can serve, safely and rightly?

Owns every check on untrusted bytes, made before an engine sees them: what vLLM refuses with an
opaque error, and what it serves silently wrong. Refuses to change anything (`normalise.py` does).
Memory is bounded by the largest single tensor. As many problems as can be told are told at once.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydantic import BaseModel, ConfigDict

from adapters.artifact import (
    ADAPTER_FILES,
    IGNORED_FILES,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    read_manifest,
)
from adapters.base import BaseModelInfo
from adapters.errors import IncompatibleBase, InvalidAdapter
from adapters.files import open_regular
from adapters.lora_config import read_settings
from adapters.strictjson import Malformed
from adapters.tensorfile import Floats, TensorEntry, read_floats, read_header

KEY_PREFIX = "base_model.model."
SIDES = {".lora_A.weight": "A", ".lora_B.weight": "B"}


class Limits(BaseModel):
    """What an upload may be at most."""

    model_config = ConfigDict(frozen=True)

    max_rank: int = 64
    max_bytes: int = 512 * 2**20
    max_delta_ratio: float = 10.0
    """Largest ‖ΔW‖_F / ‖W‖_F of a layer, bounded by ‖A‖_F·‖B‖_F·scale. Six adapters trained
    on the pocket model with BAPO and DPO at a learning rate of 1e-3 had 0.14 to 0.31; a change ten
    times the weights is no personal preference, and 1e30 and the like are far above."""
    max_delta: float = 1000.0
    """The same bound as a plain number, for layers of a base whose weights are of a type without
    a known norm (quantised ones). An 8B model's largest layers have a norm of about 100."""
    max_factor: float = 1000.0
    """Largest ‖A‖_F, and ‖B‖_F·scale. A product of ordinary size can hide a factor that overflows
    fp16 on the way; PEFT's own initialisations stay below √in_features, 170 for the widest."""


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
    settings = read_settings(folder, limits.max_rank)
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
            pairs = _pairs(list(header), base, settings.rank)
            _check_values(file, pairs, settings.scale, base, limits)
        except Malformed as error:
            raise InvalidAdapter([f"{WEIGHTS_FILE} {error}"]) from None
    parameters = sum(entry.elements for entry in header)
    return ValidationReport(
        settings.rank, settings.scale, tuple(sorted(pairs)), parameters, size, tuple(warnings)
    )


def _check_listing(folder: Path) -> None:
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise InvalidAdapter([f"the folder cannot be read ({error.strerror})"]) from None
    extra = [name for name in names if name not in (*ADAPTER_FILES, *IGNORED_FILES)]
    if extra:
        raise InvalidAdapter([_about_extra(name) for name in extra])


def _about_extra(name: str) -> str:
    if name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt")):
        return f"{name[:80]!r} may hold a pickle, which can run code: save as {WEIGHTS_FILE}"
    return f"{name[:80]!r} is not accepted: send {', '.join(ADAPTER_FILES)}"


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
    problems: list[str] = []
    changes = False
    for module, sides in pairs.items():
        norms = {}
        for side, entry in sides.items():
            values = read_floats(file, entry)
            if not np.isfinite(values).all():
                problems.append(f"{entry.name!r} holds NaN or infinity")
            norms[side] = _norm(values)
        a, b = norms["A"], norms["B"] * scale
        changes = changes or a * b > 0
        problems += _excesses(module, a, b, base.norms.get(module), limits)
    if not changes and not problems:
        problems.append("every layer's change is zero: it would answer like the base")
    if problems:
        raise InvalidAdapter(problems)


def _excesses(
    module: str, a: float, b: float, weight: float | None, limits: Limits
) -> Iterator[str]:
    """What is too large, given ‖A‖, ‖B‖·scale and, where it is known, the norm of the weights."""
    if weight and a * b > limits.max_delta_ratio * weight:
        yield (
            f"{module} would change by up to {a * b / weight:.3g} times its weights, more "
            f"than the {limits.max_delta_ratio:g} allowed"
        )
    elif not weight and a * b > limits.max_delta:
        yield f"{module} would change by up to {a * b:.3g}, more than {limits.max_delta:g}"
    for side, norm in (("A", a), ("B", b)):
        if norm > limits.max_factor:
            yield (
                f"lora_{side} of {module} has a norm of {norm:.3g}, more than "
                f"{limits.max_factor:g}: train with a lower learning rate"
            )


def _norm(values: Floats) -> float:
    """Frobenius norm in double precision: float32 overflows on squares of 1e30."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sqrt(np.sum(np.square(values, dtype=np.float64))))
