"""Seconds for many users: one `bapo fleet`, and a `trl dpo` process for each, scaled from a few."""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.figures import add_rows, ratios
from training.config import BAPOConfig
from training.data import PreferencePair, load_pairs, save_pairs

ROOT = Path(__file__).resolve().parents[1]
POCKET = ROOT / "models" / "pocket"
PREFERENCES = ROOT / "examples" / "preferences"
PAIRS_OF_A_USER = 64


def fleet(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Seconds for all users: our one process, and a TRL process for each, scaled from a few."""
    from benchmarks.trl_dpo_user import seconds_of_trl_dpo

    # Both sides run on these, our defaults; ours trains BAPO and samples its base answers too.
    config = BAPOConfig(use_cpu=arguments.device == "cpu")
    sizes: list[int] = sorted(set(arguments.users))
    ours: dict[int, list[float]] = {size: [] for size in sizes}
    theirs: list[list[float]] = []
    with tempfile.TemporaryDirectory() as name:
        for number in range(arguments.rounds):
            where = f"fleet: round {number + 1} of {arguments.rounds}"
            work = Path(name, str(number))
            theirs.append([])
            for user in range(arguments.trl_users):
                with console.status(f"{where}: TRL, user {user + 1} of {arguments.trl_users}"):
                    folder = work / f"trl-{user}"
                    seconds = seconds_of_trl_dpo(POCKET, pairs_of(user), folder, config)
                theirs[-1].append(seconds)
            for size in sizes:
                with console.status(f"{where}: bapo fleet, {size} users"):
                    ours[size].append(seconds_of_fleet(size, work / f"ours-{size}", config))
    return _fleet_found(ours, theirs, arguments, console)


def seconds_of_fleet(size: int, work: Path, config: BAPOConfig) -> float:
    """One `bapo fleet` over so many users, from the start of the process to its end."""
    data, out, log = work / "data", work / "out", work / "log"
    data.mkdir(parents=True)
    for user in range(size):
        save_pairs(pairs_of(user), data / f"user-{user:03}.jsonl")
    command = [sys.executable, "-m", "bapo", "fleet", "--model", str(POCKET)]
    command += ["--data", str(data), "--out", str(out)]
    if config.use_cpu:
        command += ["--use_cpu", "true"]
    # Base answers that an earlier run left in the user's cache are not to help.
    environment = {**os.environ, "XDG_CACHE_HOME": str(work / "cache")}
    began = time.perf_counter()
    with log.open("wb") as output:
        done = subprocess.run(
            command, stdout=output, stderr=output, env=environment, cwd=ROOT, check=False
        ).returncode
    seconds = time.perf_counter() - began
    made = len(list(out.glob("*/adapter_model.safetensors")))
    if done or made != size:
        raise SystemExit(f"`bapo fleet` made {made} of {size}:\n{log.read_text()[-2000:]}")
    return seconds


def pairs_of(user: int) -> list[PreferencePair]:
    """64 pairs in one voice; users draw from a common store, so some share prompts."""
    files = sorted(file for file in PREFERENCES.glob("*.jsonl") if "." not in file.stem)
    store = load_pairs(files[user % len(files)])
    return random.Random(user).sample(store, PAIRS_OF_A_USER)


def _fleet_found(
    ours: dict[int, list[float]],
    theirs: list[list[float]],
    arguments: argparse.Namespace,
    console: Console,
) -> dict[str, Any]:
    sizes = list(ours)
    scaled = {size: [size * statistics.mean(one) for one in theirs] for size in sizes}
    faster = {size: ratios(scaled[size], ours[size]) for size in sizes}
    more = {
        f"{small} to {large}": [
            (b - a) / (large - small) for a, b in zip(ours[small], ours[large], strict=True)
        ]
        for small, large in pairwise(sizes)
    }
    table = Table("seconds", "min", "median", "max", "aim")
    add_rows(table, {"TRL, one user": [seconds for one in theirs for seconds in one]})
    note = f"scaled from {arguments.trl_users}, not measured"
    add_rows(table, {f"TRL, {size} users ({note})": row for size, row in scaled.items()})
    add_rows(table, {f"bapo fleet, {size} users": row for size, row in ours.items()})
    add_rows(table, {f"bapo fleet, each further user, {span}": row for span, row in more.items()})
    for size, row in faster.items():
        add_rows(table, {f"TRL over ours, {size} users": row}, aim="≥ 8")
    console.print(table)
    return {
        "prompts": {size: _distinct_prompts(size) for size in sizes},
        "TRL, seconds of each measured user, by round": theirs,
        f"TRL, all users ({note})": scaled,
        "bapo fleet, all users": ours,
        "bapo fleet, each further user": more,
        "TRL over ours": faster,
    }


def _distinct_prompts(size: int) -> str:
    prompts = [str(pair.prompt) for user in range(size) for pair in pairs_of(user)]
    return f"{len(set(prompts))} distinct of {len(prompts)}"
