"""What does learning a preference cost in knowledge: BAPO and its rivals, one grid of runs.

Every run trains one adapter on the pocket model and asks it, at four points along the way, for
held-out preferences and for facts. A finished run is one line of WORK/runs.jsonl; started again,
the grid goes on where it was, and several processes may share a folder. `forgetting_report` makes
the tables of docs/forgetting.md from that file.

    make bench-forgetting DATA=../shared/data            everything; days, stop it whenever you like
    python -m benchmarks.forgetting runs/forgetting --data ../shared/data --shard 2/2 --runs 100
    python -m benchmarks.forgetting runs/small --small   a minute, without the data
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import logging

from adapters.base import POCKET
from benchmarks.figures import machine
from benchmarks.forgetting_data import small_world, whole_world
from benchmarks.forgetting_grid import BASE, Run, grid, small_grid
from benchmarks.forgetting_run import Bench, measure_base, train_and_measure
from training.cache import JsonlCache
from training.model import load_base


def arguments_of(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder of the finished runs and the caches")
    parser.add_argument("--data", type=Path, help="the data folder (chitchat/, facts/)")
    parser.add_argument("--small", action="store_true", help="three short runs on committed data")
    parser.add_argument("--shard", default="1/1", help="K/N: this process takes every N-th run")
    parser.add_argument("--runs", type=int, help="end after so many runs of the grid's order")
    arguments = parser.parse_args(words)
    if not arguments.small and not (arguments.data and (arguments.data / "chitchat").is_dir()):
        parser.error("--data must name the data folder, which has a folder chitchat/; or --small")
    return arguments


def main(words: list[str] | None = None) -> None:
    arguments = arguments_of(words)
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    arguments.work.mkdir(parents=True, exist_ok=True)
    world = small_world() if arguments.small else whole_world(arguments.data)
    write_general(world.general, arguments.work / "general.jsonl")
    bench = Bench(load_base(POCKET, cpu=True), world, arguments.work)
    runs = (small_grid() if arguments.small else grid())[: arguments.runs]
    for run in todo(runs, JsonlCache(arguments.work / "runs.jsonl"), arguments.shard):
        print(f"{run.key} …", end=" ", flush=True)
        record = do(bench, run)
        print(record.get("cpu seconds", ""), flush=True)
        JsonlCache(arguments.work / "runs.jsonl").add({run.key: record})


def write_general(prompts: list[str], file: Path) -> None:
    """One prompt a line, whole or not at all: other processes may be reading."""
    new = file.with_suffix(f".{os.getpid()}")
    new.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    new.replace(file)


def do(bench: Bench, run: Run) -> dict[str, object]:
    """The run's record: what it was, what it was made with, and its figures."""
    found = measure_base(bench, run) if run.method == BASE else train_and_measure(bench, run)
    return {
        "taste": run.taste,
        "family": run.method.family,
        "told": run.method.told,
        "settings": dict(run.method.settings),
        "learning_rate": run.learning_rate,
        "seed": run.seed,
        **found,
        "machine": machine("torch", "transformers", "peft"),
    }


def todo(runs: list[Run], done: JsonlCache, shard: str) -> Iterator[Run]:
    """This shard's runs that nobody has finished, in their order."""
    number, shards = map(int, shard.split("/"))
    for place, run in enumerate(runs):
        if place % shards == number - 1:
            done.refresh()  # the other processes finish runs, too
            if done.get(run.key) is None:
                yield run


if __name__ == "__main__":
    main()
