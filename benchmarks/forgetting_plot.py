"""The Pareto picture of the forgetting benchmark: preference against facts kept.

Owns the drawing; the points come analysed. Facts lost are on a bent axis, even to 1 % and
logarithmic beyond: most methods lose so little that they would be one line on an even one. Colours
are Okabe and Ito's (2008), and every method has a marker of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from adapters.statistics import Proportion
from benchmarks.forgetting_analysis import Course, Point, rate

STYLES = {
    "DPO": ("#d55e00", "o"),
    "BAPO hinge": ("#0072b2", "s"),
    "BAPO absolute": ("#0072b2", "D"),
    "BAPO squared": ("#0072b2", "^"),
    "BAPO log_ratio": ("#56b4e9", "<"),
    "BAPO kl": ("#56b4e9", ">"),
    "SFT": ("#009e73", "v"),
    "IPO": ("#e69f00", "P"),
    "DPOP": ("#cc79a7", "X"),
    "DPO+SFT": ("#7a5c00", "*"),
    "DPO, KL on chosen": ("#666666", "d"),
}
SMALLEST, GROWTH = 14, 0.35
EVEN = 0.01
"""Facts lost up to which the axis is even."""
LOST = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def pareto(found: Sequence[Course], file: Path) -> None:
    """A panel a taste, written to `file`: every run a line through its steps, later ones larger."""
    tastes = list(dict.fromkeys(course[0].taste for course in found))
    figure = Figure(figsize=(5.2 * len(tastes), 4.6), layout="constrained")
    panels = figure.subplots(1, len(tastes), sharey=True, squeeze=False)[0]
    for axes, taste in zip(panels, tastes, strict=True):
        _panel(axes, taste, [course for course in found if course[0].taste == taste])
    panels[0].set_ylabel("facts lost (fewer is up)")
    handles = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=6, frameon=False
    )
    figure.savefig(file, dpi=110)


def _panel(axes: Axes, taste: str, found: Sequence[Course]) -> None:
    base = found[0][0].test
    axes.plot(rate(base.preference), _lost(base.facts), "k*", markersize=13, label="the base")
    for course in found:
        colour, marker = STYLES[course[-1].family]
        x = [rate(point.test.preference) for point in course]
        y = [_lost(point.test.facts) for point in course]
        axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.5)
        _spread(axes, course[-1], colour)
        sizes = [SMALLEST + GROWTH * point.step for point in course[1:]]
        axes.scatter(
            x[1:], y[1:], sizes, color=colour, marker=marker, label=course[-1].family, alpha=0.85
        )
    axes.set_title(f"{taste} (larger: after more steps)")
    axes.set_xlabel("preferred answer more likely, new questions")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_yscale("symlog", linthresh=EVEN)
    axes.yaxis.set_major_locator(FixedLocator(LOST))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    axes.set_ylim(1.0, -EVEN / 5)
    axes.grid(alpha=0.25)


def _lost(facts: Sequence[bool]) -> float:
    return 1 - rate(facts)


def _spread(axes: Axes, last: Point, colour: str) -> None:
    """The intervals of a run's last point, both ways."""
    low, high = Proportion.of(last.test.preference).interval
    least, most = Proportion.of(not known for known in last.test.facts).interval
    x, y = rate(last.test.preference), _lost(last.test.facts)
    axes.plot([low, high], [y, y], [x, x], [least, most], color=colour, linewidth=0.6, alpha=0.6)
