"""Log-probabilities of several answers to one prompt, the prompt computed once.

Owns the forward pass of training. Refuses data and what a loss makes of the figures.
Exact: in a packed row each branch attends to the prompt and to itself, at the positions it
would have alone, so its log-probability is that of the row-wise computation (a test holds
it to 1e-4). The LM head sees the positions that predict an answer's token and no others;
it is more than half of a small model's step.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.batching import PROMPT, PackedRows
from training.errors import ModelError
from training.fused import is_frozen_linear, target_logprobs
from training.losses import token_kl
from training.model import reference

LOGITS_AT_ONCE = 2**26
"""Logits (tokens · vocabulary) held at a time; beyond, the head runs in slices."""
LOGITS_IN_CACHE = 2**22
"""The same for a frozen head, whose blocks cost nothing: as many as stay near the cores."""
WIDTH = 2**13
"""Columns of the vocabulary in such a block; the more rows it has, the rarer weights are read."""


def sequence_logprobs(model: nn.Module, batch: PackedRows) -> Tensor:
    """Summed log-probability of each branch given its prompt, in nats; (B, K) float32.

    `model` is a causal LM of transformers, with a PEFT adapter or without. Differentiable.
    """
    return _branch_sums(_token_logprobs_of(model, predictor_states(model, batch), batch), batch)


def sequence_logprobs_and_kl(
    model: nn.Module, batch: PackedRows, *, first: int
) -> tuple[Tensor, Tensor]:
    """`sequence_logprobs`, and KL(π_ref ‖ π_θ) of each next token summed along the last branches.

    These are the A branches from `first` on; (B, K) and (B, A). The KL is over the whole
    vocabulary. The reference is `model` without its adapter, run once more without gradient;
    no more than a slice of its logits is ever held.
    """
    with evaluating(causal_lm(model)), reference(model):
        reference_states = predictor_states(model, batch)  # (N, H)
    states = predictor_states(model, batch)  # (N, H)
    logprobs = _branch_sums(_token_logprobs_of(model, states, batch), batch)
    branches = batch["lengths"].shape[1]
    chosen = batch["owner"] % branches >= first  # (N,)
    head = causal_lm(model).get_output_embeddings()
    divergence = token_divergence(states[chosen], reference_states[chosen], head)
    sums = divergence.new_zeros(batch["lengths"].numel())  # (B·K,)
    sums = sums.index_add(0, batch["owner"][chosen], divergence).view_as(batch["lengths"])
    return logprobs, sums[:, first:]


def predictor_states(model: nn.Module, batch: PackedRows) -> Tensor:
    """The last hidden state at every position that predicts an answer's token; (N, H)."""
    network = causal_lm(model)
    hidden = network.get_decoder()(
        input_ids=batch["input_ids"],
        attention_mask=branch_mask(batch["segment_ids"], dtype=network.dtype),
        position_ids=batch["position_ids"],
        use_cache=False,
    ).last_hidden_state  # (B, T, H)
    return hidden.flatten(0, 1)[batch["predictor"]]


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

    No more than `logits_at_once` logits are ever held, so that peak memory does not grow with
    the number of tokens: a frozen head's gradient is made with them, block by block of tokens and
    vocabulary; for another one backward computes them again.
    """
    if is_frozen_linear(head):
        at_once = min(logits_at_once, LOGITS_IN_CACHE)
        width = min(WIDTH, at_once, head.weight.shape[0])
        return target_logprobs(hidden, targets, cast(nn.Linear, head), (at_once // width, width))
    return _in_slices(_score, hidden, targets, head, logits_at_once)


def token_divergence(
    policy: Tensor, reference: Tensor, head: nn.Module, *, logits_at_once: int = LOGITS_AT_ONCE
) -> Tensor:
    """KL(π_ref ‖ π_θ) of each next token, (N,) float32, from two hidden states (N, H).

    Sliced as `token_logprobs` is. The reference's head is `head` without its adapter.
    """
    return _in_slices(_diverge, policy, reference, head, logits_at_once // 2)


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


def _diverge(policy: Tensor, reference: Tensor, head: nn.Module) -> Tensor:
    with torch.no_grad():
        reference_logits = getattr(head, "base_layer", head)(reference).float()
    return token_kl(head(policy).float(), reference_logits)


def _in_slices(
    score: Callable[[Tensor, Tensor, nn.Module], Tensor],
    hidden: Tensor,  # (N, H)
    other: Tensor,  # (N, ...)
    head: nn.Module,
    logits_at_once: int,
) -> Tensor:
    size = max(1, logits_at_once // head.weight.shape[0])
    if len(hidden) <= size:
        return score(hidden, other, head)
    slices = zip(hidden.split(size), other.split(size), strict=True)
    return torch.cat([checkpoint(score, *parts, head, use_reentrant=False) for parts in slices])


def _token_logprobs_of(model: nn.Module, states: Tensor, batch: PackedRows) -> Tensor:
    return token_logprobs(states, batch["target"], causal_lm(model).get_output_embeddings())


def _branch_sums(per_token: Tensor, batch: PackedRows) -> Tensor:
    """Values of tokens (N,) summed over each branch; (B, K)."""
    sums = per_token.new_zeros(batch["lengths"].numel())  # (B·K,)
    return sums.index_add(0, batch["owner"], per_token).view_as(batch["lengths"])
