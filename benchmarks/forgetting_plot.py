"""The Pareto picture of the forgetting benchmark: preference against facts kept.

Owns the drawing; the points come analysed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.forgetting_analysis import Course, rate

STYLES = {
    "DPO": ("#d62728", "o"),
    "BAPO hinge": ("#1f77b4", "s"),
    "BAPO absolute": ("#6baed6", "s"),
    "BAPO squared": ("#08306b", "D"),
    "BAPO log_ratio": ("#9ecae1", "s"),
    "BAPO kl": ("#3182bd", "^"),
    "SFT": ("#2ca02c", "v"),
    "IPO": ("#ff7f0e", "P"),
    "DPOP": ("#9467bd", "X"),
    "DPO+SFT": ("#8c564b", "*"),
    "DPO, KL on chosen": ("#7f7f7f", "d"),
}
SMALLEST, GROWTH = 14, 0.45


def pareto(found: Sequence[Course], file: Path) -> None:
    """A panel a taste, written to `file`: every run a line through its steps, later ones larger."""
    tastes = list(dict.fromkeys(course[0].taste for course in found))
    figure = Figure(figsize=(5.2 * len(tastes), 4.6), layout="constrained")
    panels = figure.subplots(1, len(tastes), sharey=True, squeeze=False)[0]
    for axes, taste in zip(panels, tastes, strict=True):
        _panel(axes, taste, [course for course in found if course[0].taste == taste])
    panels[0].set_ylabel("facts still answered right")
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
    axes.plot(rate(base.preference), rate(base.facts), "k*", markersize=13, label="the base")
    for course in found:
        colour, marker = STYLES[course[-1].family]
        x = [rate(point.test.preference) for point in course]
        y = [rate(point.test.facts) for point in course]
        axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.5)
        sizes = [SMALLEST + GROWTH * point.step for point in course[1:]]
        axes.scatter(
            x[1:], y[1:], sizes, color=colour, marker=marker, label=course[-1].family, alpha=0.85
        )
    axes.set_title(f"{taste} (larger: after more steps)")
    axes.set_xlabel("preferred answer more likely, new questions")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(alpha=0.25)
