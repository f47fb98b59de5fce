"""What a process of its own grows by during training, from just before it to its peak."""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import logging

from benchmarks.figures import add_rows, ratios
from benchmarks.training_sides import HALF_BILLION, OURS, SMALL, TINY, TRL_DPO, Clock, trainer_of

LARGE_VOCABULARY = 32_000


def memory(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """MiB that a process grows by from just before training to its peak."""
    shape = HALF_BILLION if arguments.device == "cuda" else SMALL
    table = Table("MiB on top of the state before training", "min", "median", "max", "aim")
    found: dict[str, Any] = {}
    for vocabulary in sorted({shape.vocab_size, LARGE_VOCABULARY}):
        grown: dict[str, list[float]] = {OURS: [], TRL_DPO: []}
        for number in range(arguments.rounds):
            for side, values in grown.items():
                where = f"vocabulary {vocabulary}: round {number + 1} of {arguments.rounds}: {side}"
                with console.status(f"memory: {where}"):
                    values.append(_grown_in_a_child(side, vocabulary, arguments))
        ratio = {f"{OURS} / {TRL_DPO}": ratios(grown[OURS], grown[TRL_DPO])}
        found[f"vocabulary {vocabulary}"] = {"MiB": grown, "ratios": ratio}
        table.add_section()
        table.add_row(f"vocabulary {vocabulary}", "", "", "", "")
        add_rows(table, grown)
        add_rows(table, ratio, aim="≤ 0.9")
    console.print(table)
    return found


def _grown_in_a_child(side: str, vocabulary: int, arguments: argparse.Namespace) -> float:
    command = [sys.executable, "-m", "benchmarks.training_memory", side, str(vocabulary)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    child = subprocess.run(
        [*command, arguments.device], capture_output=True, text=True, check=False, env=environment
    )
    if child.returncode:
        raise SystemExit(f"{side} did not train:\n{child.stderr[-2000:]}")
    return float(child.stdout.splitlines()[-1])


def grow(side: str, vocabulary: int, device: str) -> float:
    """MiB by which this process grows over training at its peak; the child's part of `memory`."""
    shape = replace(HALF_BILLION if device == "cuda" else SMALL, vocab_size=vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        # What is imported and set up once is there before the measurement begins.
        trainer_of(side, TINY, device, Clock(), folder).train()
        trainer = trainer_of(side, shape, device, Clock(), folder)
        gc.collect()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            trainer.train()
            return float(torch.cuda.max_memory_allocated() - before) / 2**20
        # Free memory that malloc has kept would hide growth.
        ctypes.CDLL(None).malloc_trim(0)
        # Linux: from here on the peak counts anew (getrusage's ru_maxrss is the same counter).
        Path("/proc/self/clear_refs").write_text("5")
        resting = _kibibytes("VmRSS")
        trainer.train()
        return (_kibibytes("VmHWM") - resting) / 2**10


def _kibibytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    logging.set_verbosity_error()
    print(grow(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
