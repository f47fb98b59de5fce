"""Are an adapter's numbers numbers, and is its change within bounds?

Owns every check on values. Refuses names and shapes, which were settled before. One adapter
with NaN or 1e30 spoils an engine's answers to everybody, so finite is not enough: the change of
each layer is bounded relative to the base's own weights. Holds one layer's tensors at a time.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from adapters.base import BaseModelInfo
from adapters.limits import Limits
from adapters.lora_tensors import Pair, Side
from adapters.pace import give_way
from adapters.tensorfile import Numbers, TensorEntry, read_floats

BF16_ROUNDING = 2**-9  # relative, of one number
SLAB = 4096  # columns that are multiplied at once
CANCELLING = 1e-3  # ‖BA‖² / (‖A‖²·‖B‖²), which for factors by chance is 1 / r

Gram = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Magnitudes:
    """How much an adapter changes, and what is wrong with its numbers."""

    change: float | None
    """The largest ‖ΔW‖ / ‖W‖ of its layers; None where no ‖W‖ is known."""
    blur: float
    """How much of the change rounding to bf16 takes away or adds, about; 0.002 for most."""
    problems: Sequence[str]


def measure(
    file: BinaryIO,
    pairs: Mapping[str, Pair],
    scale: float,
    base: BaseModelInfo,
    limits: Limits,
) -> Magnitudes:
    """Read and measure every pair. Raises Malformed where the file ends early."""
    problems: list[str] = []
    ratios: list[float] = []
    moved = rounded = 0.0
    for module, sides in pairs.items():
        of_a, of_b = _grams(file, sides)
        broken = [side for side, gram in (("A", of_a), ("B", of_b)) if not np.isfinite(gram).all()]
        if broken:
            problems += [f"lora_{side} of {module} holds NaN or infinity" for side in broken]
            continue
        weight, change = base.norms.get(module), _change(of_a, of_b) * scale
        a, b = _norm(of_a), _norm(of_b) * scale
        problems += _excesses(module, change, weight, limits)
        problems += _oversized(module, {"A": a, "B": b}, limits)
        if weight:
            ratios.append(change / weight)
        moved, rounded = math.hypot(moved, change), math.hypot(rounded, a * b / len(of_a) ** 0.5)
    if not moved and not problems:
        problems.append("every layer's change is zero: it would answer like the base")
    blur = BF16_ROUNDING * rounded / moved if moved else 0.0
    return Magnitudes(max(ratios, default=None), blur, problems)


def _excesses(module: str, change: float, weight: float | None, limits: Limits) -> Iterator[str]:
    """What is too large about ‖ΔW‖, beside the norm of the weights where that is known."""
    if weight and change > limits.max_delta_ratio * weight:
        yield (
            f"{module} would change by {change / weight:.3g} times its weights, more "
            f"than the {limits.max_delta_ratio:g} allowed"
        )
    elif not weight and change > limits.max_delta:
        yield f"{module} would change by {change:.3g}, more than {limits.max_delta:g}"


def _oversized(module: str, norms: Mapping[Side, float], limits: Limits) -> Iterator[str]:
    for side, norm in norms.items():
        if norm > limits.max_factor:
            yield (
                f"lora_{side} of {module} has a norm of {norm:.3g}, more than "
                f"{limits.max_factor:g}: train with a lower learning rate"
            )


@np.errstate(over="ignore", invalid="ignore")  # inf - inf, and a NaN may signal
def _grams(file: BinaryIO, sides: Pair) -> tuple[Gram, Gram]:
    """A·Aᵀ and Bᵀ·B, (r, r); with NaN or infinity where the tensor has one.

    In double precision no sum of products of finite float32 values overflows. That takes twice as
    long, so it is done only where single precision cannot be trusted.
    """
    for kind in (np.float32, np.float64):
        of_a = _gram(file, sides["A"], rows=True, kind=kind)
        of_b = _gram(file, sides["B"], rows=False, kind=kind)
        if _trusted(of_a, of_b):
            break
    return of_a, of_b


def _trusted(of_a: Gram, of_b: Gram) -> bool:
    """Whether the rounding of single precision, some 1e-6 of ‖A‖²·‖B‖², does not matter.

    It does where something overflowed or vanished, and where the two halves of a factor cancel.
    """
    squared = float(np.sum(of_a * of_b))
    return math.isfinite(squared) and squared > CANCELLING * np.trace(of_a) * np.trace(of_b)


def _gram(file: BinaryIO, entry: TensorEntry, *, rows: bool, kind: type) -> Gram:
    values = read_floats(file, entry)
    wide = values if rows else values.T  # (r, n)
    total = np.zeros((wide.shape[0], wide.shape[0]))
    for begin in range(0, wide.shape[1], SLAB):
        slab: Numbers = wide[:, begin : begin + SLAB].astype(kind, copy=False)
        total += slab @ slab.T
        give_way()
    return total


def _change(of_a: Gram, of_b: Gram) -> float:
    """‖B·A‖_F = √tr(BᵀB·AAᵀ).

    Exact, because the product of the factors' norms is not enough to go by: where PiSSA was
    converted to a plain LoRA, two large halves nearly cancel.
    """
    return math.sqrt(max(0.0, float(np.sum(of_a * of_b))))


def _norm(gram: Gram) -> float:
    """‖A‖_F, given A·Aᵀ."""
    return math.sqrt(float(np.trace(gram)))
