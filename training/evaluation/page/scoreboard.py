"""Figures and changes as rows for the page's tables.

Owns their order and what is marked: a change counts where its p-value, after Holm over all that was
compared between the two models, is below 5 %. Refuses figures of its own.
"""

from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from training.evaluation.page.wording import (
    GROUPS,
    difference,
    interval,
    number,
    p_value,
    title_of,
)
from training.evaluation.results import Comparison, Figure, Report

SIGNIFICANT = 0.05

Mark = Literal["better", "worse", "different", ""]


@dataclass(frozen=True)
class Cell:
    """A figure of one model: value, interval, n; and how it stands to the base."""

    value: str
    interval: str
    n: str
    mark: Mark = ""


@dataclass(frozen=True)
class Row:
    """A figure of every model; None where it was not measured."""

    name: str
    title: str
    note: str
    cells: list[Cell | None]


@dataclass(frozen=True)
class Change:
    """A figure of one model against another, on the same items."""

    title: str
    name: str
    after: str
    before: str
    difference: str
    interval: str
    p: str
    flips: str
    n: int
    mark: Mark


def scoreboard(report: Report) -> list[tuple[str, list[Row]]]:
    """Rows by group, in the order of the figures."""
    fullest_first = sorted(report.models, key=lambda model: -len(model.figures))
    names = list(dict.fromkeys(name for model in fullest_first for name in model.figures))
    rows = [(_group(name), _row(report, name)) for name in sorted(names, key=_place)]
    return [(group, [row for _, row in of]) for group, of in groupby(rows, key=lambda r: r[0])]


def changes(report: Report) -> list[Change]:
    """Every comparison, as it was made."""
    return [_change(report, comparison) for comparison in report.comparisons]


def mark_of(report: Report, comparison: Comparison) -> Mark:
    """Whether what changed is an improvement; nothing where it may be chance."""
    if comparison.p_adjusted >= SIGNIFICANT or not comparison.difference:
        return ""
    figure = report.model(comparison.after).figures.get(comparison.figure)
    if figure is None or figure.better is None:
        return "different"
    return "better" if (comparison.difference > 0) == (figure.better == "higher") else "worse"


def _row(report: Report, name: str) -> Row:
    found = [model.figures.get(name) for model in report.models]
    known = next(figure for figure in found if figure is not None)
    marks = {c.after: mark_of(report, c) for c in _against_first(report) if c.figure == name}
    better = {"higher": "↑ higher is better", "lower": "↓ lower is better", None: ""}[known.better]
    note = ", ".join(filter(None, [known.unit, better]))
    cells = [
        None if figure is None else _cell(figure, marks.get(model, ""))
        for model, figure in zip(report.names, found, strict=True)
    ]
    return Row(name, title_of(name), note, cells)


def _cell(figure: Figure, mark: Mark) -> Cell:
    users = f", {figure.users} users" if figure.users else ""
    ends = interval(figure.low, figure.high, figure.kind)
    return Cell(number(figure.value, figure.kind), ends, f"n = {figure.n:,}{users}", mark)


def _change(report: Report, c: Comparison) -> Change:
    figure = report.model(c.after).figures.get(c.figure)
    shown, ends = difference(c, figure.kind if figure else "mean")
    flips = "" if c.gained is None else f"{c.gained} / {c.lost}"
    return Change(
        *(title_of(c.figure), c.figure, c.after, c.before, shown, ends, p_value(c.p_adjusted)),
        *(flips, c.n, mark_of(report, c)),
    )


def _against_first(report: Report) -> list[Comparison]:
    """The comparisons with what stands first, usually the base."""
    firsts = {after: before for before, after in reversed(_pairs(report))}
    return [c for c in report.comparisons if firsts[c.after] == c.before]


def _pairs(report: Report) -> list[tuple[str, str]]:
    return list(dict.fromkeys((c.before, c.after) for c in report.comparisons))


def _place(name: str) -> int:
    """Of the figure's group among the groups; within one, figures keep their order."""
    groups = list(GROUPS)
    first = name.partition(".")[0]
    return groups.index(first) if first in groups else len(groups)


def _group(name: str) -> str:
    first = name.partition(".")[0]
    return GROUPS.get(first, first)
