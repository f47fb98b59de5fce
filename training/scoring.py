"""What a model makes of answers: log-probabilities of many pairs, no gradient kept.

Owns the batched pass that gives references to training and margins to evaluation, always
in the order of the pairs. Refuses judgement: accuracy is `evaluation/`'s.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from training.batching import by_length, collate, on_device
from training.encoding import EncodedPair
from training.logprobs import causal_lm, evaluating, sequence_logprobs
from training.model import reference
from training.progress import Tick, silent


def score_pairs(
    model: torch.nn.Module,
    pairs: Sequence[EncodedPair],
    *,
    batch_size: int = 32,
    tick: Tick = silent,
) -> Tensor:
    """Log-probability of every branch of every pair under `model`; (n, K) float32, on CPU."""
    network = causal_lm(model)
    scores = torch.empty(len(pairs), len(pairs[0].branches))
    with evaluating(network):
        for indices in by_length([len(pair) for pair in pairs], batch_size):
            rows = collate([pairs[index] for index in indices])
            scores[indices] = sequence_logprobs(model, on_device(rows, network.device)).cpu()
            tick(len(indices))
    return scores


def with_reference(
    model: torch.nn.Module, pairs: Sequence[EncodedPair], *, batch_size: int = 32
) -> list[EncodedPair]:
    """The pairs with the base model's log-probabilities; `model`'s adapter is off for it."""
    with reference(model):
        scores = score_pairs(model, pairs, batch_size=batch_size)
    return [
        replace(pair, reference=tuple(row))
        for pair, row in zip(pairs, scores.tolist(), strict=True)
    ]
