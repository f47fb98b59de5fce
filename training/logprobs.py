"""Log-probabilities of several answers to one prompt, the prompt computed once.

Owns the forward pass of training. Refuses losses and data. Exact: in a packed row each
branch attends to the prompt and to itself, at the positions it would have alone, so its
log-probability is that of the row-wise computation (a test holds it to 1e-4). The LM head
sees the positions that predict an answer's token and no others; it is more than half of
a small model's step.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.batching import PROMPT, PackedRows
from training.errors import ModelError

LOGITS_AT_ONCE = 2**26
"""Logits (tokens · vocabulary) held at a time; beyond, the head runs in slices."""


def sequence_logprobs(model: nn.Module, batch: PackedRows) -> Tensor:
    """Summed log-probability of each branch given its prompt, in nats; (B, K) float32.

    `model` is a causal LM of transformers, with a PEFT adapter or without. Differentiable.
    """
    network = causal_lm(model)
    hidden = network.get_decoder()(
        input_ids=batch["input_ids"],
        attention_mask=branch_mask(batch["segment_ids"], dtype=network.dtype),
        position_ids=batch["position_ids"],
        use_cache=False,
    ).last_hidden_state  # (B, T, H)
    predictors = hidden.flatten(0, 1)[batch["predictor"]]  # (N, H)
    logprobs = token_logprobs(predictors, batch["target"], network.get_output_embeddings())
    sums = logprobs.new_zeros(batch["lengths"].numel())  # (B·K,)
    return sums.index_add(0, batch["owner"], logprobs).view_as(batch["lengths"])


def branch_mask(segment_ids: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Additive attention mask, (B, 1, T, T): 0 where a token may look, else the least value.

    A token sees what is at or before it in the row, of the prompt and of its own branch.
    Padding sees the prompt too, lest a row of the softmax be empty.
    """
    width = segment_ids.shape[1]
    same = segment_ids[:, :, None] == segment_ids[:, None, :]  # (B, T, T)
    of_prompt = (segment_ids == PROMPT)[:, None, :]  # (B, 1, T)
    causal = torch.ones(width, width, dtype=torch.bool, device=segment_ids.device).tril()
    visible = (same | of_prompt) & causal
    hidden = torch.zeros(visible.shape, dtype=dtype, device=segment_ids.device)
    return hidden.masked_fill_(~visible, torch.finfo(dtype).min).unsqueeze(1)


def token_logprobs(
    hidden: Tensor, targets: Tensor, head: nn.Module, *, logits_at_once: int = LOGITS_AT_ONCE
) -> Tensor:
    """log softmax(head(hidden))[target], (N,) float32, from hidden (N, H) and targets (N,).

    Beyond `logits_at_once` the head runs in slices that backward computes again, so that
    peak memory does not grow with the number of tokens.
    """
    slice_size = max(1, logits_at_once // head.weight.shape[0])
    if len(targets) <= slice_size:
        return _score(hidden, targets, head)
    parts = [
        checkpoint(_score, hidden_part, target_part, head, use_reentrant=False)
        for hidden_part, target_part in zip(
            hidden.split(slice_size), targets.split(slice_size), strict=True
        )
    ]
    return torch.cat(parts)


def causal_lm(model: nn.Module) -> nn.Module:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not hasattr(inner, "get_decoder") or inner.get_output_embeddings() is None:
        raise ModelError(f"{type(inner).__name__} is no causal language model.")
    return inner


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Inside, no gradient and no dropout; afterwards the network is as it was."""
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(was_training)


def _score(hidden: Tensor, targets: Tensor, head: nn.Module) -> Tensor:
    return -F.cross_entropy(head(hidden).float(), targets, reduction="none")
