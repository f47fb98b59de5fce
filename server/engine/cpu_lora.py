"""LoRA on the CPU: each row of a step gets its own adapter's product, rows without one nothing.

Owns the weights in their slots, which way a product is computed, torch's way, and `install`, the
plugin by which vLLM's worker gets all of it; `cpu_kernel.py` is the way of a few rows,
`cpu_punica.py` knows vLLM.
vLLM 0.32 marks a row of the base model with adapter index -1, and its own CPU products index the
stacked weights with it, so that such a row is given the adapter in the *last* slot: another user's.
CUDA's kernels skip them and are left alone.
Invariant: a row whose index is negative stays bit for bit as it was, and no number of one slot,
NaN included, ever reaches a row of another.

Small products cost what their calls cost. So the plan of a step (`Batch`) is made once for all
layers; the adapters of a layer's parts (q, k, v) lie side by side (`Stacks`); a slot with few rows
is computed by a loop of our own, all such slots in one call; one with many, as a long prompt has,
by torch. Weights are kept in the model's type, since reading them is what the loop's time is for
(`docs/log.md`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import linear

from server.engine.quiet import keep_texts_out

Rows = npt.NDArray[np.int64]

FEW = 4_000_000
"""Multiplications of a slot: up to so many, some 200 µs, the loop on one core was faster than torch
on two (`docs/log.md`). With more cores torch is level earlier, but never below what its calls
cost."""
LOOPS_TYPES = (torch.float32, torch.bfloat16)
"""Of weights and rows; others are kept in float32, and computed by torch."""


@dataclass(frozen=True)
class Batch:
    """Which rows of a step have which slot; at least one has one."""

    runs: dict[int, Rows]
    """Slot → its rows, in order."""

    @classmethod
    def of(cls, indices: torch.Tensor) -> Batch | None:
        """The plan for rows with these slots, negative for none; None where no row has one."""
        slots = indices.numpy()
        used = np.unique(slots[slots >= 0])
        runs = {int(slot): np.flatnonzero(slots == slot) for slot in used}
        return cls(runs) if runs else None

    @cached_property
    def pairs(self) -> tuple[Rows, Rows]:
        """Rows that have a slot, and the slot of each."""
        rows = np.concatenate(list(self.runs.values()))
        return rows, np.repeat(list(self.runs), [len(rows) for rows in self.runs.values()])

    @cached_property
    def indices(self) -> dict[int, slice | torch.Tensor]:
        """Slot → its rows, to index with; rows that follow each other need not be copied."""
        return {
            slot: slice(rows[0], rows[-1] + 1) if _follow(rows) else torch.from_numpy(rows)
            for slot, rows in self.runs.items()
        }

    def without(self, slots: Collection[int]) -> Batch | None:
        """The plan of the other slots' rows; None where there are none."""
        others = {slot: rows for slot, rows in self.runs.items() if slot not in slots}
        return Batch(others) if others else None


def _follow(rows: Rows) -> bool:
    return int(rows[-1] - rows[0]) + 1 == len(rows)


class Stacks:
    """The weights of one layer in every slot, its P parts (q, k, v) side by side.

    `parts_a` and `parts_b` are views of them in vLLM's shapes. What is written by `write` is
    remembered by its rank, so that what the next adapter of the slot does not cover is zeroed, and
    no more: a slot of rank 128 would cost as much for one of rank 8.
    """

    def __init__(
        self, slots: int, rank: int, width: int, sizes: Sequence[int], dtype: torch.dtype
    ) -> None:
        """`width` inputs; `sizes` outputs of each part; the model's type."""
        # When a worker of vLLM 0.32 starts, it asks each name of all modules there are for a
        # `__dict__`, and llvmlite has one (`llvmlite.binding.ffi.lib`) that answers with something
        # else. So numba is not imported before.
        from server.engine import cpu_kernel

        self.columns = np.cumsum([0, *sizes])
        dtype = dtype if dtype in LOOPS_TYPES else torch.float32
        # Written to, and not only promised to be zero: the system would look for the memory when
        # an adapter comes into a slot for the first time, and everybody would wait for that.
        self.a = torch.empty(slots, len(sizes), rank, width, dtype=dtype).zero_()
        self.b = torch.empty(slots, rank, sum(sizes), dtype=dtype).zero_()
        """Each part in its columns, transposed: a rank's numbers for all outputs lie together."""
        self.ranks = np.zeros((slots, len(sizes)), dtype=np.int64)
        """Of each slot and part, the first rank from which on there are only zeros."""
        self.multiplications = [0] * slots
        """That a row of the slot takes."""
        self._loop, self._as_numbers = cpu_kernel.compiled(dtype), cpu_kernel.as_numbers
        a, b = self._as_numbers(self.a), self._as_numbers(self.b)
        self._weights = a, b, self.columns, self.ranks
        self.parts_a = tuple(a.unsqueeze(1) for a in self.a.unbind(1))  # (slots, 1, rank, width)
        self.parts_b = tuple(  # (slots, 1, size, rank)
            self.b[..., begin:end].transpose(1, 2).unsqueeze(1)
            for begin, end in pairwise(self.columns.tolist())
        )

    def write(
        self, slot: int, a: Sequence[torch.Tensor | None], b: Sequence[torch.Tensor | None]
    ) -> None:
        """Put an adapter in a slot: of each part (r, width) and (size, r), or None."""
        for part, (one, other) in enumerate(zip(a, b, strict=True)):
            into_a, into_b = self.parts_a[part][slot, 0], self.parts_b[part][slot, 0]
            rank = 0 if one is None else len(one)
            filled = max(int(self.ranks[slot, part]), rank)
            self._now_has(filled, slot, part)  # also if this fails half-way
            if one is not None and other is not None:
                into_a[:rank] = one
                into_b[:, :rank] = other
            into_a[rank:filled] = 0
            into_b[:, rank:filled] = 0
            self._now_has(rank, slot, part)

    def add_rows(self, output: torch.Tensor, inputs: torch.Tensor, rows: Rows, slots: Rows) -> None:
        """output[rows] += B[slots] A[slots] inputs[rows], by the loop."""
        numbers, weights = self._as_numbers, self._weights
        self._loop(numbers(output), numbers(inputs), *weights, rows, slots)

    def fits(self, a: Sequence[torch.Tensor | None], b: Sequence[torch.Tensor | None]) -> bool:
        """Whether `write` can take these: whole, and both or none of each part."""
        return len(a) == len(b) == len(self.parts_a) and all(
            (one is None and other is None)
            or (
                one is not None
                and other is not None
                and one.shape[1:] == into_a.shape[3:]
                and other.shape == (into_b.shape[2], len(one))
                and len(one) <= into_a.shape[2]
            )
            for one, other, into_a, into_b in zip(a, b, self.parts_a, self.parts_b, strict=True)
        )

    def clear(self, slot: int) -> None:
        """Only zeros in a slot."""
        nothing = [None] * len(self.parts_a)
        self.write(slot, nothing, nothing)

    def was_written(self, slot: int) -> None:
        """Somebody else has written into the slot's views; how far is not known."""
        self._now_has(self.a.shape[2], slot)

    def _now_has(self, rank: int, slot: int, part: int | slice = slice(None)) -> None:
        self.ranks[slot, part] = rank
        a_rank_takes = self.a.shape[3] + np.diff(self.columns)
        self.multiplications[slot] = int(self.ranks[slot] @ a_rank_takes)


def add_lora(output: torch.Tensor, inputs: torch.Tensor, stacks: Stacks, batch: Batch) -> None:
    """output += B[slot] A[slot] inputs, for each row that has a slot. (N, out), (N, width)."""
    by_torch = batch.runs.keys() if not _readable(output, inputs, stacks) else _many(stacks, batch)
    for slot in by_torch:
        _add_one(output, inputs, stacks, slot, batch.indices[slot])
    if rest := batch.without(by_torch) if by_torch else batch:
        stacks.add_rows(output, inputs, *rest.pairs)


def _readable(output: torch.Tensor, inputs: torch.Tensor, stacks: Stacks) -> bool:
    """Whether the loop can read these rows."""
    of_its_type = output.dtype == inputs.dtype == stacks.a.dtype
    return of_its_type and bool(output.is_contiguous() and inputs.is_contiguous())


def _many(stacks: Stacks, batch: Batch) -> Collection[int]:
    """The slots with too many rows for the loop."""
    a_row_takes = stacks.multiplications
    return [slot for slot, rows in batch.runs.items() if len(rows) * a_row_takes[slot] > FEW]


def _add_one(
    output: torch.Tensor,
    inputs: torch.Tensor,
    stacks: Stacks,
    slot: int,
    rows: slice | torch.Tensor,
) -> None:
    """The same for one slot's rows, by torch, in the type of its weights."""
    a, b = stacks.a[slot], stacks.b[slot]
    parts, rank, width = a.shape
    shrunk = linear(inputs[rows].to(a.dtype), a.view(parts * rank, width))
    for own, (begin, end) in zip(
        shrunk.split(rank, dim=1), pairwise(stacks.columns.tolist()), strict=True
    ):
        target = output[:, begin:end]
        added = (own @ b[:, begin:end]).to(output.dtype)
        if isinstance(rows, slice):
            target[rows] += added
        else:
            target.index_add_(0, rows, added)


def install() -> None:
    """Put the products above in place of vLLM's on CPU platforms (the plugin's entry point).

    On all platforms it is also what keeps users' texts out of the log of each of vLLM's processes.
    Safe to call more than once, as vLLM asks of a general plugin. Raises AttributeError when vLLM
    no longer has one of the names: better no start than wrong answers.
    """
    from vllm.platforms import current_platform

    keep_texts_out()
    if current_platform.is_cpu():
        from server.engine import cpu_punica

        cpu_punica.install()
