"""What a model makes of answers: log-probabilities of many pairs, no gradient kept.

Owns the batched pass that gives references to training and margins to evaluation, always
in the order of the pairs, and the references' cache. Refuses judgement: accuracy is
`evaluation/`'s.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from training.batching import by_length, collate, on_device
from training.cache import open_cache
from training.encoding import EncodedPair
from training.logprobs import causal_lm, evaluating, sequence_logprobs
from training.model import ResidentBase, reference
from training.progress import Tick, silent


def score_pairs(
    model: torch.nn.Module,
    pairs: Sequence[EncodedPair],
    *,
    batch_size: int = 32,
    bf16: bool = False,
    tick: Tick = silent,
) -> Tensor:
    """Log-probability of every branch of every pair under `model`; (n, K) float32, on CPU.

    `bf16` computes under autocast, as a training step with that setting does.
    """
    network = causal_lm(model)
    scores = torch.empty(len(pairs), len(pairs[0].branches) if pairs else 0)
    with evaluating(network), torch.autocast(network.device.type, torch.bfloat16, enabled=bf16):
        for indices in by_length([len(pair) for pair in pairs], batch_size):
            rows = collate([pairs[index] for index in indices])
            scores[indices] = sequence_logprobs(model, on_device(rows, network.device)).cpu()
            tick(len(indices))
    return scores


def with_reference(
    model: torch.nn.Module,
    pairs: Sequence[EncodedPair],
    *,
    batch_size: int = 32,
    bf16: bool = False,
) -> list[EncodedPair]:
    """The pairs with the base model's log-probabilities, from the training forward.

    `model`'s adapter is off for it. Pairs that have theirs already keep them.
    """
    unknown = [pair for pair in pairs if pair.reference is None]
    with reference(model):
        scores = iter(score_pairs(model, unknown, batch_size=batch_size, bf16=bf16).tolist())
    return [
        pair if pair.reference is not None else replace(pair, reference=tuple(next(scores)))
        for pair in pairs
    ]


def with_cached_reference(
    base: ResidentBase,
    pairs: Sequence[EncodedPair],
    cache_file: Path,
    *,
    batch_size: int = 32,
    bf16: bool = False,
) -> list[EncodedPair]:
    """The same, from a file where it is known, and kept there where it was not.

    Known are the pairs of an earlier run on the same base in the same precision, its
    anchors and all: a sweep over methods and settings reads them once.
    """
    cache = open_cache(cache_file)
    keys = [_key(base, pair, bf16) for pair in pairs]
    width = len(pairs[0].branches) if pairs else 0

    def known(key: str) -> tuple[float, ...] | None:
        found = (cache.get(key) or {}).get("logprobs")
        return tuple(found) if isinstance(found, list | tuple) and len(found) == width else None

    found = [replace(p, reference=known(k)) for p, k in zip(pairs, keys, strict=True)]
    scored = with_reference(base.model, found, batch_size=batch_size, bf16=bf16)
    fresh = {
        key: {"logprobs": after.reference}
        for key, before, after in zip(keys, found, scored, strict=True)
        if before.reference is None
    }
    if fresh:
        cache.add(fresh)
    return scored


def _key(base: ResidentBase, pair: EncodedPair, bf16: bool) -> str:
    precision = [str(base.model.dtype), bf16, base.model.device.type]
    scored = [base.voice, precision, pair.prompt, pair.branches]
    return hashlib.sha256(json.dumps(scored).encode()).hexdigest()
