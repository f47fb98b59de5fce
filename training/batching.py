"""Pairs to packed rows, and the order in which they come.

Owns the layout: one row a pair, the prompt once and behind it each answer as a branch.
Refuses models and losses. What a row says does not depend on the rows beside it: padding
stands behind, belongs to no branch and is never scored.

    tokens     p p p p  c c c  r r  b b b b  · ·
    segment    0 0 0 0  1 1 1  2 2  3 3 3 3  -1 -1
    position   0 1 2 3  4 5 6  4 5  4 5 6 7  0 0
"""

import random
from collections.abc import Iterator, Sequence
from typing import TypedDict, cast

import torch
from torch import Tensor
from torch.utils.data import Sampler

from training.encoding import EncodedPair, Tokens

PADDING = -1
PROMPT = 0


class PackedRows(TypedDict):
    """B rows of K branches, N completion tokens in all, T the longest row.

    A branch that a row does not have has length 0 and owns no token.
    """

    input_ids: Tensor  # (B, T)
    position_ids: Tensor  # (B, T)
    segment_ids: Tensor  # (B, T)  0 prompt, 1..K the branch, -1 padding
    predictor: Tensor  # (N,)  where in the B·T positions token n is predicted
    target: Tensor  # (N,)  token n
    owner: Tensor  # (N,)  row · K + branch of token n
    lengths: Tensor  # (B, K)  tokens in each branch


class PairBatch(PackedRows):
    """Packed rows with the base model's log-probabilities."""

    reference: Tensor  # (B, K)
    numbers: Tensor  # (B,)  each row's place in its data, from 1


def pack(rows: Sequence[tuple[Tokens, Sequence[Tokens | None]]]) -> PackedRows:
    """Lay out each (prompt, branches); every row has as many branches, None where it lacks one.

    Raises ValueError for an empty prompt or an empty branch: neither can be scored.
    """
    branches = len(rows[0][1])
    width = max(len(prompt) + sum(len(a or ()) for a in answers) for prompt, answers in rows)
    ids, positions, segments = [], [], []
    predictor: list[int] = []
    target: list[int] = []
    owner: list[int] = []
    for row, (prompt, answers) in enumerate(rows):
        if not prompt or () in answers or len(answers) != branches:
            raise ValueError("a row needs a prompt and as many non-empty branches as the first")
        line = list(prompt)
        position = list(range(len(prompt)))
        segment = [PROMPT] * len(prompt)
        for branch, answer in enumerate(answers):
            if answer is None:
                continue
            start = row * width + len(line)
            # A branch's first token is predicted by the prompt's last position.
            predictor += [row * width + len(prompt) - 1, *range(start, start + len(answer) - 1)]
            target += answer
            owner += [row * branches + branch] * len(answer)
            line += answer
            position += range(len(prompt), len(prompt) + len(answer))
            segment += [branch + 1] * len(answer)
        padding = width - len(line)
        ids.append(line + [0] * padding)
        positions.append(position + [0] * padding)
        segments.append(segment + [PADDING] * padding)
    return PackedRows(
        input_ids=torch.tensor(ids),
        position_ids=torch.tensor(positions),
        segment_ids=torch.tensor(segments),
        predictor=torch.tensor(predictor),
        target=torch.tensor(target),
        owner=torch.tensor(owner),
        lengths=torch.tensor([[len(answer or ()) for answer in answers] for _, answers in rows]),
    )


def collate(pairs: Sequence[EncodedPair]) -> PackedRows:
    """Pack pairs; a PairBatch where every pair has its reference."""
    rows = pack([(pair.prompt, pair.branches) for pair in pairs])
    known = [pair.reference for pair in pairs if pair.reference is not None]
    if len(known) < len(pairs):
        return rows
    numbers = torch.tensor([pair.number for pair in pairs])
    return PairBatch(**rows, reference=torch.tensor(known), numbers=numbers)


def on_device(rows: PackedRows, device: torch.device) -> PackedRows:
    """The same rows on another device."""
    return cast(PackedRows, {name: cast(Tensor, t).to(device) for name, t in rows.items()})


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of like length, longest first (so memory runs out at once or never)."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


class LengthBuckets(Sampler[int]):  # type: ignore[misc]
    """A seeded order for each epoch in which neighbours are of like length.

    Pairs are shuffled, cut into buckets of `batch_size * spread`, sorted within each, and
    the batches shuffled again: little padding, and still other companions in every epoch.
    The order depends on (seed, epoch) alone, so a resumed run sees the same one.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, *, seed: int, spread: int = 8
    ) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.spread = spread
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; the data loader calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        shuffle = random.Random(f"{self.seed}/{self.epoch}")
        order = list(range(len(self.lengths)))
        shuffle.shuffle(order)
        batches = []
        for start in range(0, len(order), self.batch_size * self.spread):
            bucket = order[start : start + self.batch_size * self.spread]
            bucket.sort(key=lambda index: self.lengths[index])
            batches += [
                bucket[i : i + self.batch_size] for i in range(0, len(bucket), self.batch_size)
            ]
        # A short batch stays last: the loader cuts batches by count and would shift the rest.
        short = [batch for batch in batches if len(batch) < self.batch_size]
        full = [batch for batch in batches if len(batch) == self.batch_size]
        shuffle.shuffle(full)
        return (index for batch in full + short for index in batch)
