"""What changed against the base, as a forest plot: a rate a line, its interval about no change.

Owns the drawing. Refuses figures that are no rates, whose units would not go on one axis, and
those of drift, which have pictures of their own.
"""

from matplotlib.artist import Artist
from matplotlib.figure import Figure as Canvas

from training.evaluation.page.drawing import (
    INK,
    Picture,
    as_svg,
    colour_of,
    drawing,
    legend,
    marker_of,
    told_apart,
)
from training.evaluation.page.wording import difference, title_of
from training.evaluation.results import Comparison, Report

APART = 0.24
"""Between the models of one figure, of the distance between two figures."""


def forest(report: Report) -> Picture | None:
    """Differences of rates with their intervals; None where nothing was compared."""
    found = [c for c in report.comparisons if _is_rate(report, c) and c.low is not None]
    if not found:
        return None
    names = list(dict.fromkeys(c.figure for c in found))
    sides = list(dict.fromkeys((c.after, c.before) for c in found))
    row = max(0.42, 0.2 * len(sides))
    models = list(dict.fromkeys(name for side in sides for name in side))
    shown = dict(zip(models, told_apart(models), strict=True))
    handles: list[Artist] = []
    with drawing():
        canvas = Canvas(figsize=(7.6, 1.2 + row * len(names)), layout="constrained")
        axes = canvas.subplots()
        axes.axvline(0, color=INK, linewidth=1)
        for number, side in enumerate(sides):
            of = [c for c in found if (c.after, c.before) == side]
            shift = (number - (len(sides) - 1) / 2) * min(APART, 0.8 / len(sides))
            values = [100 * c.difference for c in of]
            drawn = axes.errorbar(
                values,
                [names.index(c.figure) + shift for c in of],
                xerr=_spreads(of),
                color=colour_of(number),
                marker=marker_of(number),
                markersize=5.5,
                linestyle="none",
            )
            handles.append(drawn.lines[0])
        axes.set_yticks(range(len(names)), [title_of(name) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("change in points, 95 % interval")
        legend(canvas, handles, [f"{shown[after]} less {shown[before]}" for after, before in sides])
        svg = as_svg(canvas, "forest")
    told = "; ".join(
        f"{title_of(c.figure)}, {c.after} less {c.before}: {' '.join(difference(c, 'rate'))}"
        for c in found
    )
    return Picture(
        svg,
        "What changed, item by item. An interval that leaves out 0 is a change of its own; the"
        " table adjusts for having looked at all of them.",
        f"Changes in points. {told}.",
    )


def _spreads(of: list[Comparison]) -> list[list[float]]:
    return [
        [100 * max(0.0, c.difference - (c.low or 0)) for c in of],
        [100 * max(0.0, (c.high or 0) - c.difference) for c in of],
    ]


def _is_rate(report: Report, comparison: Comparison) -> bool:
    figure = report.model(comparison.after).figures.get(comparison.figure)
    rate = figure is not None and figure.kind == "rate"
    return rate and not comparison.figure.startswith("drift.")
