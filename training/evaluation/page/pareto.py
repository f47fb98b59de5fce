"""Preference against retention, every model a point: who pays what for what.

Owns which figures are set against each other, and the frontier: the models that no other beats in
both. Refuses a single score out of the two.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from training.evaluation.items import BASE
from training.evaluation.page.drawing import (
    INK,
    Picture,
    as_svg,
    colour_of,
    drawing,
    in_percent,
    legend,
    marker_of,
    told_apart,
)
from training.evaluation.page.wording import sentence, title_of
from training.evaluation.results import Figure, Report

PREFERENCES = ("preference.winrate", "preference.accuracy", "preference.likelihood")
RETENTIONS = ("retention.facts", "retention.choices")
BY_DEFINITION = Figure(value=0.5, low=None, high=None, n=0, kind="rate", better="higher")
"""Against itself the base wins as often as it loses, and gains on neither answer."""


@dataclass(frozen=True)
class Point:
    """A model's place, x preference and y retention; `number` chooses colour and marker."""

    name: str
    number: int | None
    x: Figure
    y: Figure


def pareto(report: Report) -> Picture | None:
    """A panel for each figure of preference; None where one of the two sides was not measured."""
    kept = next((name for name in RETENTIONS if _measured(report, name)), None)
    wanted = [name for name in PREFERENCES if _measured(report, name)][:2]
    if kept is None or not wanted or len(report.models) < 2:
        return None
    panels = [points_of(report, name, kept) for name in wanted]
    with drawing():
        canvas = Canvas(figsize=(4.1 * len(wanted) + 0.5, 3.8), layout="constrained")
        axes = canvas.subplots(1, len(wanted), sharey=True, squeeze=False)[0]
        for one, name, points in zip(axes, wanted, panels, strict=True):
            handles = _panel(one, points)
            one.set_xlabel(title_of(name))
        axes[0].set_ylabel(title_of(kept))
        legend(canvas, handles, told_apart([point.name for point in panels[-1]]))
        svg = as_svg(canvas, "pareto")
    told = "; ".join(
        f"{p.name}: {title_of(name)} {sentence(p.x)}, {title_of(kept)} {sentence(p.y)}"
        for name, points in zip(wanted, panels, strict=True)
        for p in points
    )
    return Picture(
        svg,
        "Preference (to the right) against retention (up), with 95 % intervals both ways. The"
        " line is the frontier: no other model here is better in both.",
        f"Preference against retention. {told}.",
    )


def points_of(report: Report, preference: str, retention: str) -> list[Point]:
    """Every model that has both figures; the base's preference over itself is 50 %."""
    found = []
    for number, model in enumerate(report.models):
        x, y = model.figures.get(preference), model.figures.get(retention)
        if model.name == BASE and x is None and y is not None:
            x = BY_DEFINITION
        if x is not None and y is not None:
            found.append(Point(model.name, number - 1 if number else None, x, y))
    return found


def frontier(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats in one figure without being beaten in the other, by x."""

    def beaten(point: Point) -> bool:
        place = (point.x.value, point.y.value)
        others = [(other.x.value, other.y.value) for other in points]
        return any(o != place and o[0] >= place[0] and o[1] >= place[1] for o in others)

    return sorted((p for p in points if not beaten(p)), key=lambda p: (p.x.value, -p.y.value))


def _panel(axes: Axes, points: Sequence[Point]) -> list[Artist]:
    """The marks, one a point."""
    edge = frontier(points)
    axes.step(
        [p.x.value for p in edge],
        [p.y.value for p in edge],
        where="pre",
        color=INK,
        linewidth=0.9,
        linestyle=(0, (4, 3)),
        zorder=1,
    )
    marks: list[Artist] = []
    for point in points:
        base = point.number is None
        drawn = axes.errorbar(
            point.x.value,
            point.y.value,
            xerr=_spread(point.x),
            yerr=_spread(point.y),
            color=INK if point.number is None else colour_of(point.number),
            marker="*" if point.number is None else marker_of(point.number),
            markersize=11 if base else 7,
            elinewidth=1.1,
            linestyle="none",
        )
        marks.append(drawn.lines[0])
    in_percent(axes, "x", "y")
    axes.margins(0.08)
    return marks


def _spread(figure: Figure) -> list[list[float]] | None:
    if figure.low is None or figure.high is None:
        return None
    return [[max(0.0, figure.value - figure.low)], [max(0.0, figure.high - figure.value)]]


def _measured(report: Report, name: str) -> bool:
    return any(name in model.figures for model in report.models)
