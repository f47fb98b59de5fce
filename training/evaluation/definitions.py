"""What each figure is, in one table: of which items, which value of each, and how it is read.

Owns the names (docs/evaluation.md has them for people). Refuses statistics (`figures.py`) and
measuring. A figure is a rate, a mean or a perplexity; one that is `relative` is against the base,
which the base itself does not have.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from training.evaluation.items import BASE, Duel, Items
from training.evaluation.results import Better, Kind

WINRATE = "preference.winrate"
NATS = "nats per token"

Value = Callable[[Any, str], float | None]
"""What an item gives to a figure under a model of that name; None where it gives nothing."""


@dataclass(frozen=True)
class Definition:
    """One figure: of which items, which value of each, and how it is to be read."""

    name: str
    items: Callable[[Items], Sequence[Any]]
    value: Value
    kind: Kind = "rate"
    unit: str = ""
    better: Better | None = None
    relative: bool = False
    """Whether it is a figure against the base, which the base itself does not have."""


def _of(holder: str, value: Callable[[Any], float | None]) -> Value:
    """The value of what the item holds for the model under `holder`, e.g. its `scores`."""

    def found(item: Any, model: str) -> float | None:
        held = getattr(item, holder).get(model)
        return None if held is None else value(held)

    return found


def _choice_right(item: Any, model: str, *, reading: str) -> float | None:
    score = item.scores.get(model)
    return None if score is None else float(getattr(score, reading) == item.answer)


def _nll_per_token(item: Any, model: str) -> float | None:
    score = item.scores.get(model)
    return None if score is None else float(score.nll) / float(item.tokens)


def _drift(of: str, prefix: str) -> Iterator[Definition]:
    """The figures of drift, on the user's prompts or on general ones."""

    def asked(items: Items) -> list[Any]:
        return [item for item in items.drift if item.of == of]

    def define(name: str, kind: Kind, unit: str = "", **more: Any) -> Definition:
        value = _of("scores", lambda score: float(getattr(score, name)))
        return Definition(f"{prefix}.{name}", asked, value, kind, unit, **more)

    yield define("kl", "mean", NATS, better="lower", relative=True)
    yield define("log_ratio", "mean", NATS, better="higher", relative=True)
    yield define("changed", "rate", relative=True)
    yield define("entropy", "mean", NATS)
    yield define("length", "mean", "tokens")
    yield define("cut", "rate", better="lower")
    yield define("repetition", "mean", better="lower")


def _won(difference: float | None) -> float | None:
    """1 above zero, 0 below, a tie for half."""
    return None if difference is None else (float(difference > 0) + float(difference >= 0)) / 2


def _duel(item: Any, model: str) -> Duel | None:
    """The item's duel of a model with the base."""
    return next((d for d in item.duels if (d.model, d.against) == (model, BASE)), None)


def _of_duel(item: Any, model: str) -> float | None:
    duel = _duel(item, model)
    return None if duel is None else {"win": 1.0, "tie": 0.5, "loss": 0.0}.get(duel.outcome)


def _unreadable(item: Any, model: str) -> float | None:
    duel = _duel(item, model)
    return None if duel is None or not duel.said else float(duel.outcome == "unreadable")


FIXED = (
    Definition(
        "preference.accuracy",
        lambda items: items.pairs,
        _of("scores", lambda score: _won(score.margin)),
        better="higher",
        relative=True,
    ),
    Definition(
        "preference.likelihood",
        lambda items: items.pairs,
        _of("scores", lambda score: _won(score.chosen - score.rejected)),
        better="higher",
    ),
    Definition(
        "preference.reward_margin",
        lambda items: items.pairs,
        _of("scores", lambda score: score.margin),
        "mean",
        "nats",
        better="higher",
        relative=True,
    ),
    Definition(WINRATE, lambda items: items.duels, _of_duel, better="higher", relative=True),
    Definition(
        "preference.unreadable",
        lambda items: items.duels,
        _unreadable,
        better="lower",
        relative=True,
    ),
    Definition(
        "retention.facts",
        lambda items: items.questions,
        _of("said", lambda answer: float(answer.right)),
        better="higher",
    ),
    Definition(
        "retention.choices",
        lambda items: items.choices,
        partial(_choice_right, reading="normalised"),
        better="higher",
    ),
    Definition(
        "retention.choices_raw",
        lambda items: items.choices,
        partial(_choice_right, reading="raw"),
        better="higher",
    ),
    Definition(
        "retention.perplexity",
        lambda items: items.texts,
        _nll_per_token,
        "perplexity",
        better="lower",
    ),
    *_drift("user", "drift"),
    *_drift("general", "drift.general"),
    Definition(
        "safety.refusals",
        lambda items: items.refusals,
        _of("said", lambda said: None if said.refused is None else float(said.refused)),
        better="higher",
    ),
)
"""Every figure but those of tasks, whose names come with the items: `tasks.NAME.METRIC`."""


def definitions(items: Items) -> Iterator[Definition]:
    """Every figure that these items could have."""
    yield from FIXED
    named: dict[tuple[str, str], None] = {}
    for item in items.tasks:
        metrics = next(iter(item.metrics.values()), {})
        named |= {(name, m): None for m in metrics for name in item.groups or [item.task]}
    for task, metric in named:
        yield _task(items, task, metric)


def _task(items: Items, task: str, metric: str) -> Definition:
    asked = [i for i in items.tasks if task in (i.groups or [i.task])]
    values = [held[metric] for i in asked for held in i.metrics.values() if metric in held]
    return Definition(
        f"tasks.{task}.{metric}",
        lambda _: asked,
        _of("metrics", lambda held: held.get(metric)),
        "rate" if set(values) <= {0.0, 1.0} else "mean",
        better="higher",
    )
