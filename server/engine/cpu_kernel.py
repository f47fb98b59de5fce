"""LoRA for a few rows on a CPU as one compiled loop: what a call of torch costs is paid once.

Owns the loop, and compiling it (numba, which vLLM brings along). A step that decodes has a row for
each stream, and for these products of some thousand numbers torch's ten calls a layer took longer
than reading the numbers does. Each row is computed by itself, so that it comes out the same to the
last bit whoever else is in the step. Sums are float32, and a row of bfloat16 is rounded once.
Compiled code is kept beside this file, or in the user's cache; where it cannot be, it is compiled
at each start (some seconds).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog
import torch
from numba import njit, types
from numba.extending import overload

log = structlog.get_logger(__name__)

Numbers = npt.NDArray[Any]
"""float32, or bfloat16 as uint16: the upper half of a float32's bits."""
Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

# Sums may be taken in another order, which is what lets them be taken many at once. Nothing is
# assumed of NaN and infinity: a NaN must come out as one.
SUMS = {"reassoc", "nsz", "contract"}
AT_ONCE = 4
"""Ranks: so many products of a row share the reading of it, and the writing of their sum."""


def _float(number: Any) -> Any:
    """A number of either type as float32."""
    raise NotImplementedError("numba takes what `overload` gives for it; Python never calls it")


@overload(_float, inline="always")  # type: ignore[untyped-decorator]
def _float_of_type(number: Any) -> Any:
    def of_bfloat16(number: Any) -> Any:
        return np.uint32(np.uint32(number) << np.uint32(16)).view(np.float32)

    def of_float32(number: Any) -> Any:
        return number

    return of_bfloat16 if number == types.uint16 else of_float32


def _round(number: Any, into: Any) -> Any:
    """A float32 as the type of `into`: the nearest one, of two the even one."""
    raise NotImplementedError("numba takes what `overload` gives for it; Python never calls it")


@overload(_round, inline="always")  # type: ignore[untyped-decorator]
def _round_to_type(number: Any, into: Any) -> Any:
    def to_bfloat16(number: Any, into: Any) -> Any:
        bits = np.float32(number).view(np.uint32)
        up = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        # Rounding up would carry some NaN beyond what a NaN is.
        rounded = bits + up if number == number else bits | np.uint32(0x400000)
        return np.uint16(rounded >> np.uint32(16))

    def to_float32(number: Any, into: Any) -> Any:
        return number

    return to_bfloat16 if into == types.uint16 else to_float32


@njit(inline="always", fastmath=SUMS)  # type: ignore[untyped-decorator]
def _add_to_row(
    output: Floats, row: Floats, a: Numbers, b: Numbers, columns: Indices, ranks: Indices
) -> None:
    """output (out) += B A row, part by part, of one slot: a (P, R, width), b (R, out)."""
    for part in range(a.shape[0]):
        shrink = a[part]
        begin, end = columns[part], columns[part + 1]
        target = output[begin:end]
        done = 0
        while done + AT_ONCE <= ranks[part]:
            a0, a1, a2, a3 = shrink[done], shrink[done + 1], shrink[done + 2], shrink[done + 3]
            s0 = s1 = s2 = s3 = np.float32(0)
            for i in range(row.shape[0]):
                x = row[i]
                s0 += _float(a0[i]) * x
                s1 += _float(a1[i]) * x
                s2 += _float(a2[i]) * x
                s3 += _float(a3[i]) * x
            b0, b1 = b[done][begin:end], b[done + 1][begin:end]
            b2, b3 = b[done + 2][begin:end], b[done + 3][begin:end]
            for i in range(target.shape[0]):
                target[i] += (s0 * _float(b0[i]) + s1 * _float(b1[i])) + (
                    s2 * _float(b2[i]) + s3 * _float(b3[i])
                )
            done += AT_ONCE
        while done < ranks[part]:
            a0, b0 = shrink[done], b[done][begin:end]
            s0 = np.float32(0)
            for i in range(row.shape[0]):
                s0 += _float(a0[i]) * row[i]
            for i in range(target.shape[0]):
                target[i] += s0 * _float(b0[i])
            done += 1


def _add_rows(
    output: Numbers,
    inputs: Numbers,
    a: Numbers,
    b: Numbers,
    columns: Indices,
    ranks: Indices,
    rows: Indices,
    slots: Indices,
) -> None:
    """output[rows] += B[slots] A[slots] inputs[rows], in place; all contiguous and of one type.

    (N, ≥ out), (N, width); a (S, P, R, width), b (S, R, out), whose columns from `columns[p]` to
    `columns[p + 1]` are part p's; ranks (S, P): what comes after so many is not looked at. Indices
    are not checked here.
    """
    row, total = np.empty(a.shape[3], np.float32), np.empty(b.shape[2], np.float32)
    for k in range(rows.shape[0]):
        source, target, slot = inputs[rows[k]], output[rows[k]], slots[k]
        for i in range(row.shape[0]):
            row[i] = _float(source[i])
        for i in range(total.shape[0]):
            total[i] = _float(target[i])
        _add_to_row(total, row, a[slot], b[slot], columns, ranks[slot])
        for i in range(total.shape[0]):
            target[i] = _round(total[i], target[i])


@cache
def compiled(dtype: torch.dtype) -> Callable[..., None]:
    """`_add_rows` for float32 or bfloat16; kept for the next start where that is possible."""
    n = {torch.float32: "float32", torch.bfloat16: "uint16"}[dtype]
    signature = (
        f"void({n}[:,::1], {n}[:,::1], {n}[:,:,:,::1], {n}[:,:,::1], "
        "int64[::1], int64[:,::1], int64[::1], int64[::1])"
    )
    options: dict[str, Any] = {"nogil": True, "fastmath": SUMS}
    try:
        loop: Callable[..., None] = njit(signature, cache=True, **options)(_add_rows)
    except Exception as error:  # no folder to keep it in, a full disk, a file cut short
        log.warning(
            "compiled_code_not_kept",
            error=str(error),
            advice="each start compiles for some seconds: set NUMBA_CACHE_DIR to an empty folder "
            "that this user may write to",
        )
        loop = njit(signature, **options)(_add_rows)
    return loop


def as_numbers(tensor: torch.Tensor) -> Numbers:
    """The same memory as the loop reads it; float32 or bfloat16."""
    numbers: Numbers = (
        tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
    ).numpy()
    return numbers
