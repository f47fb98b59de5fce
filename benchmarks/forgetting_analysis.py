"""What follows from the forgetting benchmark's runs.

Owns the arithmetic of the comparison: facts kept at an equal preference accuracy, settings chosen
on validation, and loss against distance. Intervals are `adapters.statistics`'s and scipy's.
Refuses training and layout.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import nan
from pathlib import Path
from typing import Any

from scipy import stats

from benchmarks.forgetting_data import Side
from benchmarks.forgetting_run import Record, unpacked


@dataclass(frozen=True)
class Figures:
    """One side's outcomes, item by item; a list is empty where the taste has no such items."""

    facts: list[bool]
    unseen: list[bool]  # chosen more likely than rejected, scenarios never trained on
    familiar: list[bool]  # the same for new questions of trained scenarios
    margin: list[bool]  # familiar pairs (else unseen): chosen gained more than rejected
    style: list[bool]  # greedy answers that are the chosen one to the letter

    @property
    def preference(self) -> list[bool]:
        """By likelihood: of familiar pairs, or of unseen ones where a taste has no scenarios."""
        return self.familiar or self.unseen


@dataclass(frozen=True)
class Point:
    """A run at one of its steps; 0 is the base."""

    taste: str
    family: str
    told: str
    learning_rate: float
    seed: int
    step: int
    validation: Figures
    test: Figures

    @property
    def method(self) -> str:
        return f"{self.family} {self.told}".strip()


Course = list[Point]
"""A run from the base on, in the order of its steps."""


def rate(outcomes: Sequence[bool | float]) -> float:
    """The mean; NaN of nothing."""
    return sum(outcomes) / len(outcomes) if outcomes else float("nan")


def read_runs(file: Path) -> list[Record]:
    """The finished runs, each once; a line that a kill left torn is passed over."""
    records: dict[str, Record] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        records.setdefault(record["key"], record)
    return list(records.values())


def courses(records: Iterable[Record]) -> list[Course]:
    """Every run as its points, the base's own before them."""
    known = list(records)
    bases = {r["taste"]: r["points"][0] for r in known if r["family"] == "base"}
    return [
        [_point(record, point) for point in (bases[record["taste"]], *record["points"])]
        for record in known
        if record["family"] != "base"
    ]


def facts_at(course: Course, accuracy: float) -> list[float] | None:
    """Each fact of the test, kept or not, where the run first has that preference accuracy.

    Between two points both figures are taken to move in a straight line. None where the run
    never gets there.
    """
    for before, after in pairwise(course):
        low, high = rate(before.test.preference), rate(after.test.preference)
        if low < accuracy <= high:
            share = (accuracy - low) / (high - low)
            return [
                (1 - share) * was + share * now
                for was, now in zip(before.test.facts, after.test.facts, strict=True)
            ]
    return None


def chosen_on_validation(found: Sequence[Course], lost: float = 0.02) -> Point:
    """The point with the best preference of validation that keeps the facts of validation.

    Of several runs' points, those within `lost` of the base's facts; where none is, the one that
    keeps most. Ties go to the earlier step.
    """
    points = sorted((p for course in found for p in course[1:]), key=lambda point: point.step)
    floor = rate(found[0][0].validation.facts) - lost
    keeping = [point for point in points if rate(point.validation.facts) >= floor]
    if not keeping:
        return max(points, key=lambda point: rate(point.validation.facts))
    return max(keeping, key=lambda point: rate(point.validation.preference))


@dataclass(frozen=True)
class Correlation:
    """Pearson's r over n tastes with its 95 % interval (Fisher), and Spearman's of the ranks."""

    r: float
    low: float
    high: float
    rank: float
    n: int


def correlation(xs: Sequence[float], ys: Sequence[float]) -> Correlation:
    """How two figures of each taste go together; NaN where one of them is the same for all."""
    if len(set(xs)) < 2 or len(set(ys)) < 2:
        return Correlation(nan, nan, nan, nan, len(xs))
    pearson = stats.pearsonr(xs, ys)
    low, high = pearson.confidence_interval(0.95)
    rank = stats.spearmanr(xs, ys).statistic
    return Correlation(float(pearson.statistic), float(low), float(high), float(rank), len(xs))


def distances(records: Iterable[Record]) -> dict[str, float]:
    """How far each taste is from the base's voice, in nats a token.

    The mean log-probability a token, under the base, of its own answers less that of the chosen.
    """
    return {
        r["taste"]: r["voice"]["base"] - r["voice"]["chosen"]
        for r in records
        if r["family"] == "base"
    }


def where(found: Iterable[Course], wanted: Callable[[Point], bool]) -> list[Course]:
    """The runs whose last point is as wanted."""
    return [course for course in found if wanted(course[-1])]


def _point(record: Record, point: Record) -> Point:
    sides: dict[Side, Figures] = {
        "validation": _figures(point["validation"]),
        "test": _figures(point["test"]),
    }
    return Point(
        record["taste"],
        record["family"],
        record["told"],
        record["learning_rate"],
        record["seed"],
        point["step"],
        **sides,
    )


def _figures(side: dict[str, Any]) -> Figures:
    pairs, familiar = side["pairs"], side.get("familiar", {})

    def of(kind: dict[str, Any], name: str) -> list[bool]:
        return unpacked(kind[name]) if name in kind else []

    return Figures(
        facts=unpacked(side["facts"]),
        unseen=of(pairs, "likelihood"),
        familiar=of(familiar, "likelihood"),
        margin=of(familiar or pairs, "margin"),
        style=of(familiar, "style"),
    )
