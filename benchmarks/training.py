"""Training with BAPOTrainer against TRL's DPOTrainer: time of a step, memory, a fleet of users.

Both sides train one model on the same tokens with the same settings, in turn, in one run; only
ratios are claims. Parts: `step` (pairs a second), `memory` (what training adds) and `fleet` (one
`bapo fleet` against a `trl dpo` process for each user). Raw figures go to
`benchmarks/results/training.json`, each part with its command, versions and machine.

    make bench-training ARGS="--parts step,memory --rounds 5"
"""

from __future__ import annotations

import argparse
import os

import torch
from rich.console import Console
from transformers import logging

from benchmarks.figures import command_line, keep, machine
from benchmarks.training_fleet import fleet
from benchmarks.training_memory import memory
from benchmarks.training_step import step
from training.config import bf16_pays

PARTS = ("step", "memory", "fleet")


def arguments_of(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="with commas between")
    parser.add_argument("--rounds", type=int, default=3, help="of every side, in turn")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="of both sides, on a CPU")
    parser.add_argument("--users", type=int, nargs="+", default=[20], help="sizes of the fleet")
    parser.add_argument("--trl-users", type=int, default=3, help="measured, then scaled")
    return parser.parse_args(words)


def main() -> None:
    arguments = arguments_of()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    torch.set_num_threads(arguments.threads)
    run = {"step": step, "memory": memory, "fleet": fleet}
    chosen = arguments.parts.split(",")
    if unknown := set(chosen) - set(run):
        raise SystemExit(f"There is no part {', '.join(unknown)}; there are {', '.join(run)}.")
    console = Console()
    logging.set_verbosity_error()
    for part in chosen:
        told = {"command": command_line("benchmarks.training"), "machine": _machine(arguments)}
        found = run[part](arguments, console)
        keep("training", {part if arguments.device == "cpu" else f"{part} on cuda": told | found})


def _machine(arguments: argparse.Namespace) -> dict[str, str]:
    on_cpu = arguments.device == "cpu"
    return {
        **machine("torch", "transformers", "peft", "trl", "accelerate", "datasets"),
        **({} if on_cpu else {"device": torch.cuda.get_device_name()}),
        "threads": str(arguments.threads),
        "bf16 pays": str(bf16_pays(cpu=on_cpu)),
    }


if __name__ == "__main__":
    main()
