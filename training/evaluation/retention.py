"""What does the model still know?

Owns questions with known answers and the count of those answered right. An answer is
right when one of the accepted answers occurs in the greedy generation as whole words,
letter case and punctuation aside: "It is Rome." answers "Rome", "Romeo" does not.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from adapters.statistics import Proportion
from training.data import read_jsonl
from training.encoding import encode_prompt
from training.errors import DataError
from training.evaluation.asked import Asked
from training.evaluation.items import Answer, QuestionItem
from training.evaluation.users import owner
from training.generation import complete
from training.progress import Tick, silent


@dataclass(frozen=True)
class Question:
    """A question, and the answers that count as right."""

    prompt: str
    answers: tuple[str, ...]
    topic: str = ""
    user: str | None = None


@dataclass(frozen=True)
class FactsKept:
    """How many questions are answered right, and what was said to each, in their order."""

    score: Proportion
    texts: tuple[str, ...]
    right: tuple[bool, ...]


def load_questions(path: str | Path) -> list[Question]:
    """Read a question set; raises DataError with file and line, and for an empty file."""
    questions = [_question_of(record, where) for where, record in read_jsonl(path)]
    if not questions:
        raise DataError(f"{path} is empty; give at least one question.")
    return questions


def facts_kept(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    max_new_tokens: int = 48,
    batch_size: int = 128,
    tick: Tick = silent,
) -> FactsKept:
    """Ask every question, greedily, and count the right answers."""
    texts = answer_texts(
        model,
        tokenizer,
        [question.prompt for question in questions],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        tick=tick,
    )
    right = tuple(is_right(t, q.answers) for t, q in zip(texts, questions, strict=True))
    return FactsKept(Proportion.of(right), tuple(texts), right)


def item_of(question: Question) -> QuestionItem:
    """The question as something that is asked."""
    return QuestionItem(
        prompt=question.prompt,
        answers=list(question.answers),
        topic=question.topic,
        user=question.user,
    )


def ask_questions(
    items: Sequence[QuestionItem], asked: Asked, tick: Tick = silent, *, max_new_tokens: int = 48
) -> None:
    """Write what the model says into each item, and whether it is right.

    What it has said to one already stands: it is greedy and would say it again.
    """
    items = [item for item in items if asked.name not in item.said]
    texts = answer_texts(
        asked.model,
        asked.tokenizer,
        [item.prompt for item in items],
        max_new_tokens=max_new_tokens,
        tick=tick,
    )
    for item, text in zip(items, texts, strict=True):
        item.said[asked.name] = Answer(text=text, right=is_right(text, item.answers))


def answer_texts(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 48,
    batch_size: int = 128,
    tick: Tick = silent,
) -> list[str]:
    """The model's greedy answers to user messages, as text without special tokens."""
    completions = complete(
        model,
        tokenizer,
        [encode_prompt(tokenizer, [{"role": "user", "content": p}]) for p in prompts],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        on_batch=lambda batch, _: tick(len(batch)),
    )
    tokens = [list(completion.tokens) for completion in completions]
    return [str(tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in tokens]


def is_right(text: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers occurs in the text as whole words."""
    said = f" {normalise_text(text)} "
    return any(f" {normalise_text(answer)} " in said for answer in answers)


def normalise_text(text: str) -> str:
    """Words only: case folded, punctuation as spaces, one space between words."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", folded))


def _question_of(record: dict[str, object], where: str) -> Question:
    prompt, answers, topic = (record.get(key) for key in ("prompt", "answers", "topic"))
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError(f"{where}: 'prompt' must be text that is not empty")
    if not isinstance(answers, list) or not answers:
        raise DataError(f"{where}: 'answers' must be a list with at least one text")
    if not all(isinstance(answer, str) and normalise_text(answer) for answer in answers):
        raise DataError(f"{where}: 'answers' has an entry that is not a word or words")
    known = topic if isinstance(topic, str) else ""
    return Question(prompt, tuple(answers), known, owner(record, where))
