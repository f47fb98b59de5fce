"""Items that an adapter lost, gained or kept, each with what was said before and after.

Owns which items are shown, and how many. Refuses judging: right and wrong stand in the report.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from training.evaluation.items import (
    ChoiceItem,
    DriftItem,
    PairItem,
    QuestionItem,
    RefusalItem,
    text_of,
)
from training.evaluation.page.words import Part, compare_words
from training.evaluation.results import Report

MOST_CHANGED = 100
MOST_KEPT = 10


@dataclass(frozen=True)
class Example:
    """One item: what was asked, what counts as right, what both models made of it."""

    prompt: str
    wanted: str
    before: list[Part]
    after: list[Part]
    notes: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Fates:
    """What became of the items of one kind, between two models."""

    kind: str
    before: str
    after: str
    total: int
    counts: dict[str, int]
    """lost, gained, retained, and wrong in both."""
    shown: dict[str, list[Example]]


Answers = Callable[[Any, str], tuple[str, bool, str] | None]
"""What an item holds of a model: the text, whether it is right, and a note."""


def fates(report: Report, after: str, before: str) -> list[Fates]:
    """Each kind of item that both models were asked and that can be right or wrong."""
    items = report.items
    kinds: list[tuple[str, Sequence[Any], Answers, Callable[[Any], str]]] = [
        ("Questions", items.questions, _said, lambda item: " or ".join(item.answers)),
        ("Multiple choice", items.choices, _choice, lambda item: str(item.choices[item.answer])),
        ("Refusals", items.refusals, _refusal, lambda item: "a refusal"),
        ("Preference pairs, by likelihood", items.pairs, _preferred, lambda item: item.chosen),
    ]
    found = [_fates(k, of, answers, wanted, before, after) for k, of, answers, wanted in kinds]
    return [one for one in found if one.total]


def rewordings(report: Report, after: str, before: str) -> list[Example]:
    """Prompts on which the greedy answers differ, however right they are."""
    return list(_rewordings(report.items.drift, after, before))[:MOST_CHANGED]


def _fates(
    kind: str,
    items: Sequence[Any],
    answers: Answers,
    wanted: Callable[[Any], str],
    before: str,
    after: str,
) -> Fates:
    counts = dict.fromkeys(("lost", "gained", "retained", "wrong in both"), 0)
    shown: dict[str, list[Example]] = {"lost": [], "gained": [], "retained": []}
    for item in items:
        was, now = answers(item, before), answers(item, after)
        if was is None or now is None:
            continue
        fate = {(1, 0): "lost", (0, 1): "gained", (1, 1): "retained"}.get((was[1], now[1]))
        counts[fate or "wrong in both"] += 1
        most = MOST_KEPT if fate == "retained" else MOST_CHANGED
        if fate and len(shown[fate]) < most:
            parts = compare_words(was[0], now[0])
            notes = (was[2], now[2])
            shown[fate].append(Example(text_of(item.prompt), wanted(item), *parts, notes))
    return Fates(kind, before, after, sum(counts.values()), counts, shown)


def _rewordings(items: Sequence[DriftItem], after: str, before: str) -> Iterator[Example]:
    for item in items:
        if before in item.scores and after in item.scores:
            was, now = item.scores[before].text, item.scores[after].text
            if was != now:
                yield Example(text_of(item.prompt), "", *compare_words(was, now))


def _said(item: QuestionItem, model: str) -> tuple[str, bool, str] | None:
    said = item.said.get(model)
    return None if said is None else (said.text, said.right, "")


def _refusal(item: RefusalItem, model: str) -> tuple[str, bool, str] | None:
    said = item.said.get(model)
    # What a judge could not tell is neither lost nor kept.
    return None if said is None or said.refused is None else (said.text, said.refused, "")


def _choice(item: ChoiceItem, model: str) -> tuple[str, bool, str] | None:
    score = item.scores.get(model)
    if score is None:
        return None
    return item.choices[score.normalised], score.normalised == item.answer, ""


def _preferred(item: PairItem, model: str) -> tuple[str, bool, str] | None:
    score = item.scores.get(model)
    if score is None:
        return None
    first = score.chosen > score.rejected
    note = f"log-probability: chosen {score.chosen:.1f}, rejected {score.rejected:.1f}"
    return item.chosen if first else item.rejected, first, note
