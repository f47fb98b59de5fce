"""How a training went: loss, rewards, log-ratios and drift along its steps.

Owns reading `training_history.json` for the page, and the drawing. A history that is missing or
not readable is left out: an adapter made elsewhere has none.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from adapters.artifact import HISTORY_FILE
from training.drift import DRIFT
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

LARGEST = 64 * 2**20
"""Bytes; a larger file is no history of a training."""
MARKED = 8
"""Markers on a curve, so that models are told apart without colours."""
SMOOTHED = 20
"""A running mean is over a twentieth of the steps."""

Line = Mapping[str, float]


@dataclass(frozen=True)
class History:
    """An adapter's training: its steps, its evaluations on the way, its looks at drift."""

    name: str
    steps: list[Line]
    evaluations: list[Line]
    drift: list[Line]


@dataclass(frozen=True)
class Panel:
    """A part of the picture: which figures it has, each with its stroke."""

    title: str
    figures: Mapping[str, Any]
    percent: bool = False


ON_ANSWERS = "chosen (solid), rejected (dashed)"
PANELS = (
    Panel("loss", {"loss": "-"}),
    Panel("reward accuracy", {"rewards/accuracies": "-"}, percent=True),
    Panel(f"rewards: {ON_ANSWERS}", {"rewards/chosen": "-", "rewards/rejected": "--"}),
    Panel("log-ratio of the base's answers, nats", {"anchor/logratio": "-"}),
    Panel(f"log-probability: {ON_ANSWERS}", {"logps/chosen": "-", "logps/rejected": "--"}),
    Panel("drift from the base, nats a token", {DRIFT: "-"}),
)


def read_history(name: str, folder: Path) -> History | None:
    """The history beside an adapter; None where there is none that can be read."""
    file = folder / HISTORY_FILE
    try:
        if file.stat().st_size > LARGEST:
            return None
        content = json.loads(file.read_text(encoding="utf-8"))
        parts = [_lines(content, part) for part in ("steps", "evaluations", "drift")]
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    return History(name, *parts) if parts[0] else None


def curves(histories: Sequence[History]) -> Picture | None:
    """A panel for each figure that any of them has; None where there is no history."""
    panels = [p for p in PANELS if any(_has(history, p) for history in histories)]
    if not panels:
        return None
    rows = -(-len(panels) // 2)
    with drawing():
        canvas = Canvas(figsize=(8.4, 2.35 * rows + 0.5), layout="constrained")
        places = canvas.subplots(rows, 2, squeeze=False, sharex=True).flatten()
        for axes in places[len(panels) :]:
            axes.set_axis_off()
        for axes, panel in zip(places, panels, strict=False):
            for number, history in enumerate(histories):
                _draw(axes, panel, history, colour_of(number), marker_of(number))
            axes.set_title(panel.title)
            axes.xaxis.set_tick_params(labelbottom=True)
            if panel.percent:
                in_percent(axes, "y")
        for axes in places[max(0, len(panels) - 2) : len(panels)]:
            axes.set_xlabel("step")
        handles = [
            Line2D([], [], color=colour_of(n), marker=marker_of(n)) for n in range(len(histories))
        ]
        legend(canvas, handles, told_apart([history.name for history in histories]))
        svg = as_svg(canvas, "curves")
    return Picture(
        svg,
        "Training, step by step: running means over one step in twenty, each step faint behind"
        " them; hollow marks are evaluations on held-out pairs on the way.",
        f"Curves of training. {'; '.join(map(_told, histories))}.",
    )


def _draw(axes: Axes, panel: Panel, history: History, colour: str, marker: str) -> None:
    for figure, dashes in panel.figures.items():
        steps, values = _course(history.steps, figure)
        if len(steps):
            width = max(1, len(values) // SMOOTHED)
            axes.plot(steps, values, color=colour, alpha=0.22, linewidth=0.7)
            smooth = _running_mean(values, width)
            every = max(1, len(values) // MARKED)
            axes.plot(
                *(steps, smooth),
                color=colour,
                linestyle=dashes,
                linewidth=1.6,
                marker=marker,
                markevery=every,
                markersize=4,
            )
        steps, values = _course(history.drift, figure)
        if len(steps):
            axes.plot(steps, values, color=colour, linewidth=1.6, marker=marker, markersize=4)
        steps, values = _course(history.evaluations, figure)
        axes.plot(
            *(steps, values),
            color=INK,
            linestyle="none",
            marker=marker,
            markersize=7,
            markerfacecolor="none",
        )


def _course(lines: Sequence[Line], figure: str) -> tuple[list[float], list[float]]:
    known = [line for line in lines if figure in line]
    return [line["step"] for line in known], [line[figure] for line in known]


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    """Over the last `width` values, of fewer at the beginning."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return [float(v) for v in (sums[ends] - sums[starts]) / (ends - starts)]


def _lines(content: Any, part: str) -> list[Line]:
    """The lines of one part, their finite numbers and nothing else."""
    found = [
        {n: float(v) for n, v in line.items() if isinstance(v, int | float) and isfinite(v)}
        for line in content.get(part, [])
    ]
    return [line for line in found if "step" in line]


def _has(history: History, panel: Panel) -> bool:
    parts = (*history.steps, *history.evaluations, *history.drift)
    return any(figure in line for line in parts for figure in panel.figures)


def _told(history: History) -> str:
    last = history.steps[-1]
    wanted = ("loss", "rewards/accuracies", "rewards/chosen", "rewards/rejected", "anchor/logratio")
    ends = ", ".join(f"{name} {last[name]:.3g}" for name in wanted if name in last)
    drifted = f", drift {history.drift[-1][DRIFT]:.3g}" if _course(history.drift, DRIFT)[0] else ""
    return f"{history.name} after {last['step']:.0f} steps: {ends}{drifted}"
