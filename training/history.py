"""What each step of a training looked like, as a file beside the adapter.

Owns the lines, one for each batch, and `training_history.json`, which has one for each
optimiser step, each evaluation and each look at the drift. Refuses to compute what stands in
them. A run that was stopped and went on has the history, byte for byte, of one that was not.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

from adapters.artifact import HISTORY_FILE

Line = dict[str, float]
"""Figures of one batch by their logged names, beside `step`, `tokens` and `learning_rate`."""

PLACE = ("step", "tokens", "learning_rate")
"""What says where a line stands, not how it went: of these there is no mean."""

EVALUATION, DRIFT = "eval_", "drift/"
"""How the figures of an evaluation, and of a look at the drift, begin in the Trainer's log."""
TIMINGS = ("runtime", "samples_per_second", "steps_per_second")


def mean_figures(lines: Sequence[Line]) -> Line:
    """The means of what was measured over some batches; empty for none."""
    names = [name for name in (lines[0] if lines else ()) if name not in PLACE]
    return {name: sum(line[name] for line in lines) / len(lines) for name in names}


def history(batches: Sequence[Line], log: Iterable[Mapping[str, Any]]) -> dict[str, list[Line]]:
    """Steps, evaluations and looks at the drift, in order; `log` is the Trainer's `log_history`.

    A step's `tokens` are those read up to its end, padding not counted; its figures are the
    means over its accumulated batches. The seconds of an evaluation are left out: they are the
    machine's, not the run's.
    """
    by_step = [list(group) for _, group in groupby(batches, key=lambda line: line["step"])]
    read = accumulate(sum(line["tokens"] for line in group) for group in by_step)
    steps = [
        {
            "step": group[0]["step"],
            "tokens": tokens,
            "learning_rate": group[0]["learning_rate"],
            **mean_figures(group),
        }
        for group, tokens in zip(by_step, read, strict=True)
    ]
    logged = list(log)
    return {
        "steps": steps,
        "evaluations": [_logged(line, EVALUATION) for line in logged if "eval_loss" in line],
        "drift": [
            _logged(line, DRIFT) for line in logged if any(n.startswith(DRIFT) for n in line)
        ],
    }


def write_history(folder: Path, content: Mapping[str, Any]) -> None:
    """Write `training_history.json` into an adapter's folder; OSError where the disk fails."""
    text = json.dumps({"schema_version": 1, **content}, allow_nan=False) + "\n"
    (folder / HISTORY_FILE).write_text(text, encoding="utf-8")


def _logged(line: Mapping[str, Any], beginning: str) -> Line:
    """The figures of a log line that begin so; an evaluation's are named as a step's are."""
    figures = {
        name.removeprefix(EVALUATION): float(value)
        for name, value in line.items()
        if name.startswith(beginning)
    }
    place = {"step": line["step"], "epoch": line["epoch"]}
    return place | {name: value for name, value in figures.items() if name not in TIMINGS}
