"""Multiple choice by likelihood: which of the choices does the model think is the answer?

Owns the question's format, JSONL with `prompt`, `choices` and `answer` (a choice's place from 0,
or the choice itself), and two readings of the same scores: `raw`, the likeliest choice as a whole
turn, and `normalised`, the likeliest per byte, which does not prefer short ones (acc and acc_norm
of lm-evaluation-harness). Refuses letters: a choice is scored as the answer that it is, its end of
turn included, so that "1" is not ahead of "12" for being its beginning.
"""

from collections.abc import Sequence
from pathlib import Path

from training.batching import by_length, on_device, pack
from training.encoding import encode_answer, encode_prompt
from training.errors import DataError
from training.evaluation.asked import Asked
from training.evaluation.items import ChoiceItem, ChoiceScore
from training.evaluation.users import owner
from training.logprobs import causal_lm, evaluating, sequence_logprobs
from training.progress import Tick, silent
from training.sources import Record, read_jsonl


def load_choices(path: str | Path) -> list[ChoiceItem]:
    """Read a question set; raises DataError with file and line, and for an empty file."""
    items = [_item_of(record, where) for where, record in read_jsonl(path)]
    if not items:
        raise DataError(f"{path} is empty; give at least one question.")
    return items


def score_choices(
    items: Sequence[ChoiceItem], asked: Asked, tick: Tick = silent, *, batch_size: int = 16
) -> None:
    """Write the log-probability of each choice into each item, and which is preferred.

    A question is one row: the prompt once, every choice a branch. Raises DataError.
    """
    network = causal_lm(asked.model)
    rows = [_encode(asked, item, number) for number, item in enumerate(items, start=1)]
    lengths = [len(prompt) + sum(map(len, choices)) for prompt, choices in rows]
    with evaluating(network):
        for batch in by_length(lengths, batch_size):
            width = max(len(rows[k][1]) for k in batch)
            padded = [(p, [*c, *[None] * (width - len(c))]) for p, c in (rows[k] for k in batch)]
            packed = on_device(pack(padded), network.device)
            scores = sequence_logprobs(asked.model, packed).tolist()  # (B, width)
            for k, logprobs in zip(batch, scores, strict=True):
                items[k].scores[asked.name] = _preferred(items[k], logprobs)
            tick(len(batch))


def _preferred(item: ChoiceItem, logprobs: Sequence[float]) -> ChoiceScore:
    known = list(logprobs[: len(item.choices)])
    per_byte = [p / len(c.encode()) for p, c in zip(known, item.choices, strict=True)]
    return ChoiceScore(
        logprobs=known, raw=known.index(max(known)), normalised=per_byte.index(max(per_byte))
    )


def _encode(
    asked: Asked, item: ChoiceItem, number: int
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    messages = [{"role": "user", "content": item.prompt}]
    try:
        prompt = encode_prompt(asked.tokenizer, messages)
        return prompt, [encode_answer(asked.tokenizer, messages, prompt, c) for c in item.choices]
    except DataError as error:
        raise DataError(f"Question {number} of the choices: {error}.") from error


def _item_of(record: Record, where: str) -> ChoiceItem:
    prompt, choices, answer = (record.get(key) for key in ("prompt", "choices", "answer"))
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError(f"{where}: 'prompt' must be text that is not empty")
    if not isinstance(choices, list) or not 2 <= len(choices) <= 100:
        raise DataError(f"{where}: 'choices' must be a list of 2 to 100 texts")
    if not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise DataError(f"{where}: 'choices' has an entry that is no text, or empty")
    if len(set(choices)) < len(choices):
        raise DataError(f"{where}: 'choices' has the same text twice")
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise DataError(f"{where}: 'answer' must be the place of a choice, from 0, or a choice")
    topic = record.get("topic")
    return ChoiceItem(
        prompt=prompt,
        choices=choices,
        answer=answer,
        topic=topic if isinstance(topic, str) else "",
        user=owner(record, where),
    )
