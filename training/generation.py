"""Answers of a model in memory, batched: for base answers and for evaluation.

Owns padding, batching and stopping. Refuses prompts as text. With a seed for each row, a
sampled answer depends on that row's seed and prompt and not on its companions (up to the
rounding of batched arithmetic), so an interrupted sampling goes on as if it had not been.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from training.batching import by_length
from training.encoding import Tokens, stop_tokens
from training.logprobs import causal_lm, evaluating

FinishReason = Literal["stop", "length"]

Choice = Callable[[Tensor, Sequence[int]], Tensor]
"""From logits (B, V) and the numbers of their rows to the next token of each, (B,)."""


@dataclass(frozen=True)
class Completion:
    """Generated tokens, the end-of-turn token with them if it came."""

    tokens: Tokens
    finish_reason: FinishReason


def complete(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Tokens],
    *,
    max_new_tokens: int = 48,
    batch_size: int = 128,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
    on_batch: Callable[[list[int], list[Completion]], None] | None = None,
) -> list[Completion]:
    """One answer a prompt, in the order of the prompts; greedy at temperature 0.

    A temperature above 0 needs a seed for each prompt. `on_batch` gets the indices and
    the answers of every batch as it is done.
    """
    if temperature > 0 and (seeds is None or len(seeds) != len(prompts)):
        raise ValueError("sampling needs a seed for each prompt")
    network = causal_lm(model)
    stops = stop_tokens(tokenizer, network)
    answers: dict[int, Completion] = {}
    for batch in by_length([len(prompt) for prompt in prompts], batch_size):
        choose: Choice = greedy
        if temperature > 0 and seeds is not None:
            choose = SeededSampling([seeds[index] for index in batch], temperature)
        with evaluating(network):
            done = _complete_batch(
                network,
                [prompts[index] for index in batch],
                choose=choose,
                stops=stops,
                max_new_tokens=max_new_tokens,
            )
        answers.update(zip(batch, done, strict=True))
        if on_batch is not None:
            on_batch(batch, done)
    return [answers[index] for index in range(len(prompts))]


class SeededSampling:
    """Draws from softmax(logits / T), each row from a generator of its own.

    The largest of logits / T plus Gumbel noise is such a draw.
    """

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature = temperature

    def __call__(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        waiting = torch.stack(
            [torch.empty(logits.shape[1]).exponential_(generator=self.generators[r]) for r in rows]
        )  # (B, V), Exp(1); minus its logarithm is Gumbel noise
        gumbel = -waiting.log().to(logits.device)
        return (logits.float() / self.temperature + gumbel).argmax(-1)


def greedy(logits: Tensor, rows: Sequence[int]) -> Tensor:
    """The most probable token of each row; logits (B, V) to (B,)."""
    return logits.argmax(-1)


def _complete_batch(
    network: nn.Module,
    prompts: Sequence[Tokens],
    *,
    choose: Choice,
    stops: Sequence[int],
    max_new_tokens: int,
) -> list[Completion]:
    """Decode rows together; a row that has ended leaves the batch and costs nothing more."""
    width = max(map(len, prompts))
    device = network.device
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)  # (B, width)
    cache = DynamicCache(config=network.config)
    answers: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))
    for _ in range(max_new_tokens):
        hidden = network.get_decoder()(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]  # (B, H)
        chosen = choose(network.get_output_embeddings()(hidden), rows)  # (B,)
        tokens = chosen.tolist()
        for row, token in zip(rows, tokens, strict=True):
            answers[row].append(token)
        going = [index for index, token in enumerate(tokens) if token not in stops]
        if not going:
            break
        ids, positions = chosen[:, None], positions[:, -1:] + 1
        if len(going) < len(rows):
            cache.batch_select_indices(torch.tensor(going, device=device))
            ids, positions, mask = ids[going], positions[going], mask[going]
            rows = [rows[index] for index in going]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=-1)
    return [Completion(tuple(a), "stop" if a[-1] in stops else "length") for a in answers]
