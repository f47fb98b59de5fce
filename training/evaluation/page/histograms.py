"""How the drift from the base is spread over prompts.

Owns the drawing: a few prompts far off and all of them a little are different things with one mean.
"""

from collections.abc import Sequence
from statistics import median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from training.evaluation.items import BASE, DriftItem
from training.evaluation.page.drawing import (
    Picture,
    as_svg,
    colour_of,
    dashes_of,
    drawing,
    legend,
    told_apart,
)
from training.evaluation.results import Report

BINS = 24
LEAST = 1e-4
"""Nats a token; less is drawn as this, since the axis is logarithmic."""
LINEAR = 0.1
"""Nats a token about 0 where the axis of log-ratios is even; beyond, it is logarithmic."""
TICKS = (-100, -10, -1, -0.1, 0, 0.1, 1, 10, 100)
ASKED = {"user": "the user's prompts", "general": "general prompts"}


def histograms(report: Report) -> Picture | None:
    """KL and log-ratio of every prompt, the user's above general ones; None without any."""
    kinds = [k for k in ASKED if any(item.of == k for item in report.items.drift)]
    models = [name for name in report.names if name != BASE]
    if not kinds or not models:
        return None
    told = []
    with drawing():
        canvas = Canvas(figsize=(8.2, 2.5 * len(kinds) + 0.4), layout="constrained")
        rows = canvas.subplots(len(kinds), 2, squeeze=False)
        for (left, right), kind in zip(rows, kinds, strict=True):
            items = [item for item in report.items.drift if item.of == kind]
            kls = {name: [max(LEAST, v) for v in _scores(items, name, "kl")] for name in models}
            ratios = {name: _scores(items, name, "log_ratio") for name in models}
            _draw(left, kls, logarithmic=True)
            _draw(right, ratios, logarithmic=False)
            left.set_ylabel(f"prompts\n({ASKED[kind]})")
            told += [
                f"{name}, {ASKED[kind]}: median KL {median(values):.3g}, largest {max(values):.3g}"
                for name, values in kls.items()
                if values
            ]
        rows[-1][0].set_xlabel("KL(base‖adapter), nats a token")
        rows[-1][1].set_xlabel("log-ratio of the base's answer, nats a token")
        handles = [
            Line2D([], [], color=colour_of(n), linestyle=dashes_of(n)) for n in range(len(models))
        ]
        legend(canvas, handles, told_apart(models))
        svg = as_svg(canvas, "histograms")
    return Picture(
        svg,
        "Drift, a prompt at a time, along the base's own sampled answers; upright lines are"
        " medians. To the left of 0 the base's answer has become less likely.",
        f"Distribution of drift over prompts. {'; '.join(told)}.",
    )


def _draw(axes: Axes, values: dict[str, list[float]], *, logarithmic: bool) -> None:
    everything = np.array([v for of in values.values() for v in of])
    low, high = float(everything.min()), float(everything.max())
    if logarithmic:
        edges = np.geomspace(low, max(high, low * 10), BINS + 1)
        axes.set_xscale("log")
    else:
        ends = np.arcsinh(np.array([min(low, -LINEAR), max(high, LINEAR)]) / LINEAR)
        edges = LINEAR * np.sinh(np.linspace(float(ends[0]), float(ends[1]), BINS + 1))
        axes.set_xscale("asinh", linear_width=LINEAR)
        axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    for number, of in enumerate(values.values()):
        colour = colour_of(number)
        axes.hist(of, bins=list(edges), color=colour, alpha=0.16)
        axes.hist(
            of,
            bins=list(edges),
            histtype="step",
            color=colour,
            linewidth=1.4,
            linestyle=dashes_of(number),
        )
        if of:
            axes.axvline(median(of), color=colour, linewidth=1.2, linestyle=dashes_of(number))


def _scores(items: Sequence[DriftItem], name: str, score: str) -> list[float]:
    return [float(getattr(item.scores[name], score)) for item in items if name in item.scores]
