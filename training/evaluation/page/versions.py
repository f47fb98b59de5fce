"""An adapter's versions in a row: each figure along them, with a ring where one lost something.

Owns the drawing and the table's words. Refuses to say what a loss is: `regression.py` has.
"""

from collections.abc import Sequence

from matplotlib.figure import Figure as Canvas

from training.evaluation.items import BASE
from training.evaluation.page.drawing import (
    INK,
    Picture,
    as_svg,
    colour_of,
    drawing,
    in_percent,
    marker_of,
    told_apart,
)
from training.evaluation.page.wording import difference, p_value, sentence, title_of
from training.evaluation.results import Figure, Loss, Report

UNSHOWN = ("drift.", "preference.unreadable")


def course(report: Report) -> Picture | None:
    """The rates of every version, the base as a line to compare with; None without a history."""
    if report.history is None or len(report.history.versions) < 2:
        return None
    versions = [report.model(name) for name in report.history.versions]
    names = [n for n, f in versions[0].figures.items() if f.kind == "rate" and _is_shown(n)]
    if not names:
        return None
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    with drawing():
        canvas = Canvas(figsize=(3.1 * columns + 0.4, 2.7 * rows), layout="constrained")
        places = canvas.subplots(rows, columns, squeeze=False, sharex=True).flatten()
        for axes in places[len(names) :]:
            axes.set_axis_off()
        for number, (axes, name) in enumerate(zip(places, names, strict=False)):
            figures = [version.figures[name] for version in versions]
            values = [figure.value for figure in figures]
            base = report.model(BASE).figures.get(name)
            if base is not None:
                axes.axhline(base.value, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
            axes.errorbar(
                range(len(values)),
                values,
                yerr=_spreads(figures),
                color=colour_of(number),
                marker=marker_of(number),
                markersize=5.5,
                elinewidth=1,
            )
            lost = {loss.after for loss in report.history.losses if loss.figure == name}
            rings = [k for k, version in enumerate(versions) if version.name in lost]
            axes.plot(
                rings,
                [values[k] for k in rings],
                linestyle="none",
                marker="o",
                markersize=14,
                markerfacecolor="none",
                markeredgecolor=INK,
            )
            axes.set_title(title_of(name), wrap=True)
            axes.set_xticks(range(len(values)), _ticks([v.name for v in versions]))
            axes.margins(0.1)
            in_percent(axes, "y")
        svg = as_svg(canvas, "versions")
    told = "; ".join(
        f"{v.name}: {title_of(n)} {sentence(v.figures[n])}" for v in versions for n in names
    )
    return Picture(
        svg,
        "Version by version, with 95 % intervals; the dashed line is the base. A ring: that version"
        " lost something against its predecessor or the best before it.",
        f"Figures by version. {told}.",
    )


def told_of(loss: Loss, report: Report) -> str:
    """A loss in a sentence."""
    figure = report.model(loss.after).figures[loss.figure]
    shown, ends = difference(loss, figure.kind)
    rival = {"predecessor": "its predecessor", "best before": "the best before it"}[loss.rival]
    flips = "" if loss.lost is None else f", {loss.lost} items lost and {loss.gained} gained"
    return (
        f"{loss.after} against {loss.before}, {rival}: {title_of(loss.figure)} {shown} {ends}"
        f"{flips}, p {p_value(loss.p_adjusted)}"
    )


def verdict(report: Report) -> str:
    """Which version was the first to lose something, in one sentence."""
    history = report.history
    if history is None or len(history.versions) < 2:
        return "There is but one version: nothing to compare."
    if history.first is None:
        return f"None of {len(history.versions)} versions lost anything that is sure."
    return f"{history.first} is the first version that lost something."


def _is_shown(name: str) -> bool:
    return not name.startswith(UNSHOWN)


def _ticks(names: Sequence[str]) -> list[str]:
    """The versions' numbers where they have some."""
    if all("@" in name for name in names):
        return [f"@{name.rpartition('@')[2]}" for name in names]
    return told_apart(names)


def _spreads(figures: list[Figure]) -> list[list[float]]:
    return [
        [max(0.0, f.value - (f.value if f.low is None else f.low)) for f in figures],
        [max(0.0, (f.value if f.high is None else f.high) - f.value) for f in figures],
    ]
