"""LoRA on the CPU: each row of a step gets its own adapter's product, rows without one nothing.

Owns which way a product is computed, its torch ways, and `install`, the plugin by which vLLM's
worker gets them; `cpu_kernel.py` is the way of a few rows, `cpu_punica.py` knows vLLM.
vLLM 0.32 marks a row of the base model with adapter index -1, and its own CPU products index the
stacked weights with it, so that such a row is given the adapter in the *last* slot: another user's.
CUDA's kernels skip them and are left alone.
Invariant: a row whose index is negative stays bit for bit as it was, and no number of one slot,
NaN included, ever reaches a row of another.

Small products cost what their calls cost. So the plan of a step (`Batch`) is made once for all
layers; the adapters of a layer's parts (q, k, v) lie side by side (`Stacks`); a few rows are one
call of a loop of our own; beyond that, adapters with about as many rows are one batched product
over their slots. torch computes in float32, since its small bf16 products take three times as long
to be set up; but weights are kept in the model's type, since reading them is what the loop's time
is for (`docs/log.md`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import linear

from server.engine.quiet import keep_texts_out

Rows = npt.NDArray[np.int64]

FEW = 3_000_000
"""Multiplications: up to so many, the loop on one core was faster than torch on two, 190 µs at most
(`docs/log.md`). With more cores torch is level earlier, but never below what its calls cost."""
LOOPS_TYPES = (torch.float32, torch.bfloat16)
"""Of weights and rows; others are kept in float32, and computed by torch."""
PADDING = 4
"""One product over all slots in use pads each to the longest run of rows. Up to so many times the
rows it is the faster way; beyond, as for a long prompt beside single tokens, slot after slot is."""


@dataclass(frozen=True)
class Batch:
    """Which rows of a step have which slot; at least one has one."""

    runs: list[tuple[int, Rows]]
    """(slot, its rows in order), by slot."""
    length: int
    """N, the rows of the step."""

    @classmethod
    def of(cls, indices: torch.Tensor) -> Batch | None:
        """The plan for rows with these slots, negative for none; None where no row has one."""
        slots = indices.numpy()
        used = np.unique(slots[slots >= 0])
        runs = [(int(slot), np.flatnonzero(slots == slot)) for slot in used]
        return cls(runs, len(slots)) if runs else None

    @cached_property
    def counts(self) -> list[tuple[int, int]]:
        """(slot, how many rows it has)."""
        return [(slot, len(rows)) for slot, rows in self.runs]

    @cached_property
    def pairs(self) -> tuple[Rows, Rows]:
        """Rows that have a slot, and the slot of each."""
        rows = np.concatenate([rows for _, rows in self.runs])
        return rows, np.repeat([slot for slot, _ in self.runs], [len(r) for _, r in self.runs])

    @cached_property
    def one_by_one(self) -> list[tuple[int, slice | torch.Tensor]]:
        """The runs, to index with; rows that follow each other need not be copied."""
        return [
            (slot, slice(rows[0], rows[-1] + 1) if _follow(rows) else torch.from_numpy(rows))
            for slot, rows in self.runs
        ]

    @cached_property
    def at_once(self) -> Padded | None:
        """The plan of one product over the slots; None where slot after slot is faster."""
        first, last = self.runs[0][0], self.runs[-1][0]
        longest = max(len(rows) for _, rows in self.runs)
        size = (last + 1 - first) * longest
        rows = np.concatenate([rows for _, rows in self.runs])
        if size > PADDING * len(rows):
            return None
        places = np.concatenate(
            [(slot - first) * longest + np.arange(len(rows)) for slot, rows in self.runs]
        )
        row_at = np.zeros(size, dtype=np.int64)
        row_at[places] = rows
        every_row = len(rows) == self.length
        if every_row:
            places = places[np.argsort(rows)]
        return Padded(
            slots=slice(first, last + 1),
            longest=longest,
            row_at=None if _is_all(row_at, self.length) else torch.from_numpy(row_at),
            rows=None if every_row else torch.from_numpy(rows),
            places=None if _is_all(places, size) else torch.from_numpy(places),
        )


@dataclass(frozen=True)
class Padded:
    """Rows laid out by slot: U slots of M places. None for an index that would change nothing."""

    slots: slice
    longest: int  # M
    row_at: torch.Tensor | None  # (U · M,) the row at a place; row 0, unused, where there is none
    rows: torch.Tensor | None  # (K,) the rows that have a slot; None where every row has one
    places: torch.Tensor | None  # (K,) where these are


def _follow(rows: Rows) -> bool:
    return int(rows[-1] - rows[0]) + 1 == len(rows)


def _is_all(index: Rows, length: int) -> bool:
    return len(index) == length and bool((index == np.arange(length)).all())


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
        self.a = torch.zeros(slots, len(sizes), rank, width, dtype=dtype)
        self.b = torch.zeros(slots, rank, sum(sizes), dtype=dtype)
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
    if _are_for_the_loop(output, inputs, stacks, batch):
        stacks.add_rows(output, inputs, *batch.pairs)
    elif padded := batch.at_once:
        _add_at_once(output, inputs, stacks, padded)
    else:
        for slot, rows in batch.one_by_one:
            _add_one(output, inputs, stacks, slot, rows)


def _are_for_the_loop(
    output: torch.Tensor, inputs: torch.Tensor, stacks: Stacks, batch: Batch
) -> bool:
    return (
        sum(stacks.multiplications[slot] * rows for slot, rows in batch.counts) <= FEW
        and output.dtype == inputs.dtype == stacks.a.dtype
        and output.is_contiguous()
        and inputs.is_contiguous()
    )


def _add_at_once(
    output: torch.Tensor, inputs: torch.Tensor, stacks: Stacks, padded: Padded
) -> None:
    a, b = stacks.a[padded.slots].float(), stacks.b[padded.slots].float()
    slots, parts, rank, width = a.shape
    if padded.row_at is not None:
        inputs = inputs.index_select(0, padded.row_at)
    rows = inputs.to(a.dtype).view(slots, padded.longest, width)
    shrunk = torch.bmm(rows, a.view(slots, parts * rank, width).transpose(1, 2))
    added = torch.cat(
        [
            torch.bmm(own, b[..., begin:end])
            for own, (begin, end) in zip(
                shrunk.split(rank, dim=2), pairwise(stacks.columns.tolist()), strict=True
            )
        ],
        dim=2,
    )
    added = added.view(slots * padded.longest, -1).to(output.dtype)
    if padded.places is not None:
        added = added.index_select(0, padded.places)
    target = output[:, : added.shape[1]]
    if padded.rows is None:
        target += added
    else:
        target.index_add_(0, padded.rows, added)


def _add_one(
    output: torch.Tensor,
    inputs: torch.Tensor,
    stacks: Stacks,
    slot: int,
    rows: slice | torch.Tensor,
) -> None:
    a, b = stacks.a[slot].float(), stacks.b[slot].float()
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
