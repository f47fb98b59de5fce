"""How far has the model moved from the base, on the user's prompts and on general ones?

Owns two readings. Along an answer that the base itself sampled (temperature 1): KL(π_ref ‖ π_θ)
of each next token over the whole vocabulary, the log-ratio of the answer and the model's entropy,
means over the answer's tokens. The log-ratio with its sign turned estimates the same KL from one
sample; that KL on the user's prompts predicts forgetting (2509.04259). And of the model's own
greedy answer: whether it is another one than the base's, its length, its repetition.

The samples are drawn for the evaluation alone: along the base answers that training anchored on,
an anchored adapter would look nearer than it is.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from training.batching import PackedRows, by_length, on_device, pack
from training.data import Message
from training.encoding import Tokens, encode_prompt
from training.errors import DataError
from training.evaluation.answers import decoded
from training.evaluation.asked import Asked
from training.evaluation.items import DriftItem, DriftScore, Prompt, messages_of
from training.evaluation.users import owner
from training.generation import Completion, complete
from training.logprobs import LOGITS_AT_ONCE, causal_lm, evaluating, predictor_states
from training.model import reference
from training.progress import Tick, silent
from training.prompts import messages_of as messages_in
from training.sources import read_jsonl

NGRAM = 4
BATCH = 32


def load_prompts(source: str | Path, of: Literal["user", "general"]) -> list[DriftItem]:
    """The prompts of a file, each once; one of preference pairs will do. Raises DataError."""
    found: dict[str, DriftItem] = {}
    for where, record in read_jsonl(source):
        prompt = _prompt(messages_in(record.get("prompt"), where))
        user = owner(record, where)
        found.setdefault(repr((prompt, user)), DriftItem(of=of, prompt=prompt, user=user))
    if not found:
        raise DataError(f"{source} is empty; give at least one prompt.")
    return list(found.values())


class Drift:
    """The measure; it keeps the base's answers for the models that are asked after it."""

    def __init__(self, items: Sequence[DriftItem], *, seed: int, max_new_tokens: int) -> None:
        self.items = items
        self.seed = seed
        self.max_new_tokens = max_new_tokens
        self._sampled: list[tuple[Tokens, Tokens]] = []  # prompt and the base's answer, n of them
        self._greedy: list[str] = []

    def __call__(self, asked: Asked, tick: Tick = silent) -> None:
        """Write each item's score under the model's name; from the base, its answer as well."""
        prompts = [encode_prompt(asked.tokenizer, messages_of(i.prompt)) for i in self.items]
        answers = complete(
            asked.model, asked.tokenizer, prompts, max_new_tokens=self.max_new_tokens
        )
        texts = [decoded(asked, answer.tokens) for answer in answers]
        if asked.is_base:
            self._sample(asked, prompts)
            self._greedy = texts
        along = along_answers(asked.model, self._sampled, tick=tick)
        for k, (item, answer) in enumerate(zip(self.items, answers, strict=True)):
            kl, log_ratio, entropy = along[k]
            item.scores[asked.name] = DriftScore(
                kl=kl,
                log_ratio=log_ratio,
                entropy=entropy,
                text=texts[k],
                length=len(answer.tokens),
                cut=answer.finish_reason == "length",
                repetition=repetition(answer.tokens),
                changed=texts[k] != self._greedy[k],
            )

    def _sample(self, asked: Asked, prompts: Sequence[Tokens]) -> None:
        seeds = [_seed(self.seed, prompt) for prompt in prompts]
        drawn: list[Completion] = complete(
            asked.model,
            asked.tokenizer,
            prompts,
            max_new_tokens=self.max_new_tokens,
            temperature=1.0,
            seeds=seeds,
        )
        self._sampled = [(p, answer.tokens) for p, answer in zip(prompts, drawn, strict=True)]
        for item, answer in zip(self.items, drawn, strict=True):
            item.base_answer, item.tokens = decoded(asked, answer.tokens), len(answer.tokens)


def along_answers(
    model: torch.nn.Module,
    answered: Sequence[tuple[Tokens, Tokens]],
    *,
    batch_size: int = BATCH,
    tick: Tick = silent,
) -> list[tuple[float, float, float]]:
    """KL(π_ref ‖ π_θ), log π_θ - log π_ref and π_θ's entropy along each answer to its prompt.

    Means over the answer's tokens, in nats. The reference is `model` without its adapter.
    """
    network = causal_lm(model)
    found: dict[int, tuple[float, float, float]] = {}
    with evaluating(network):
        for batch in by_length([len(p) + len(a) for p, a in answered], batch_size):
            rows = pack([(answered[k][0], (answered[k][1],)) for k in batch])
            rows = on_device(rows, network.device)
            figures = torch.cat(list(_of_tokens(model, rows)))  # (N, 3)
            sums = figures.new_zeros(len(batch), 3).index_add(0, rows["owner"], figures)
            means = (sums / rows["lengths"]).tolist()  # (B, 3) by (B, 1)
            found |= {k: (m[0], m[1], m[2]) for k, m in zip(batch, means, strict=True)}
            tick(len(batch))
    return [found[k] for k in range(len(answered))]


def _of_tokens(model: torch.nn.Module, rows: PackedRows) -> Iterator[Tensor]:
    """The three figures of every answer's token, (N, 3) in slices, so that memory is bounded."""
    head = causal_lm(model).get_output_embeddings()
    policy = predictor_states(model, rows)  # (N, H)
    with reference(model):
        base = predictor_states(model, rows)  # (N, H)
    size = max(1, LOGITS_AT_ONCE // (2 * head.weight.shape[0]))
    for states, base_states, targets in zip(
        policy.split(size), base.split(size), rows["target"].split(size), strict=True
    ):
        ours = head(states).float().log_softmax(-1)  # (n, V)
        with reference(model):
            theirs = head(base_states).float().log_softmax(-1)  # (n, V)
        kl = (theirs.exp() * (theirs - ours)).sum(-1)
        entropy = -(ours.exp() * ours).sum(-1)
        ratio = (ours - theirs).gather(1, targets[:, None]).squeeze(1)
        yield torch.stack([kl, ratio, entropy], dim=1)


def repetition(tokens: Sequence[int]) -> float:
    """1 - distinct 4-grams / 4-grams (seq-rep-4, Welleck et al. 2020); 0 for a short answer."""
    grams = [tuple(tokens[k : k + NGRAM]) for k in range(len(tokens) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _seed(seed: int, prompt: Tokens) -> int:
    """An answer's seed depends on its prompt and not on the other prompts of the file."""
    digest = hashlib.sha256(f"drift/{seed}/{prompt}".encode())
    return int.from_bytes(digest.digest()[:7], "big")


def _prompt(messages: list[Message]) -> Prompt:
    alone = len(messages) == 1 and messages[0]["role"] == "user"
    return messages[0]["content"] if alone else tuple(messages)
