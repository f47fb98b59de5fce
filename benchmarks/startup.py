"""Seconds from the start of the process to the first answer: this server against vLLM's own.

Both serve the pocket model with LoRA on and the same slots, ranks and dtype, in turn, in one run;
only ratios are claims. vLLM's own server runs in two ways: with a share of the memory for its KV
cache (the default share does not start on small machines), and with the cache size that ours has.
Raw figures go to `benchmarks/results/startup.json`.

    make bench-startup ARGS="--rounds 3"
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from adapters.registry import open_registry
from benchmarks.figures import ENGINE, add_rows, command_line, keep, machine, ratios
from benchmarks.registry import fill, people, works

ROOT = Path(__file__).resolve().parents[1]
POCKET = ROOT / "models" / "pocket"
PORT = 8917
LIMIT_SECONDS = 300
KEY = "startup-benchmark"
AIM = "≤ 0.65"
LORA = ["--max-loras", "8", "--max-lora-rank", "16"]

VLLM = [
    *(sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry"),
    *("--model", str(POCKET), "--served-model-name", "pocket"),
    *("--host", "127.0.0.1", "--port", str(PORT)),
    *("--enable-lora", *LORA, "--max-cpu-loras", "64", "--dtype", "float32"),
]
# A CPU engine zero-fills its KV cache at the start, so its size is part of the comparison.
SAME_CACHE = ["--kv-cache-memory-bytes", str(512 * 2**20)]

OURS, FULL = "bapo serve", "bapo serve, 10,000 adapters registered"
REGISTERED = 10_000
BAPO = [sys.executable, "-m", "bapo", "serve", "--port", str(PORT), *LORA]

COMMANDS = {
    OURS: BAPO,
    FULL: BAPO,
    "vLLM's own server": [*VLLM, "--gpu-memory-utilization", "0.3"],
    "vLLM's own server, our cache size": [*VLLM, *SAME_CACHE],
}


@contextlib.contextmanager
def running(command: list[str], data: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "BAPO_ADMIN_KEY": KEY,
        "BAPO_DATA_DIR": str(data),
        "BAPO_DTYPE": "float32",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def fill_registry(folder: Path) -> Path:
    """A data folder with so many users and adapters."""
    registry = open_registry(folder)
    fill(registry, people(REGISTERED))
    fill(registry, works(REGISTERED))
    registry.close()
    return folder


def seconds_to_first_answer(name: str, full: Path) -> float:
    """Start the server, ask until it answers a chat request, stop it."""
    body = {
        "model": "pocket",
        "messages": [{"role": "user", "content": "Good morning"}],
        "max_tokens": 1,
        "temperature": 0,
    }
    with tempfile.TemporaryDirectory() as folder:
        log, data = Path(folder, "log"), Path(folder, "data")
        if name == FULL:
            shutil.copytree(full, data)
        began = time.monotonic()
        with running(COMMANDS[name], data, log) as process:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    answer = httpx.post(
                        f"http://127.0.0.1:{PORT}/v1/chat/completions",
                        json=body,
                        headers={"Authorization": f"Bearer {KEY}"},
                        timeout=60,
                    )
                    if answer.status_code == httpx.codes.OK:
                        return time.monotonic() - began
                waited = time.monotonic() - began
                if process.poll() is not None or waited > LIMIT_SECONDS:
                    raise SystemExit(f"{name} did not start:\n{log.read_text()[-2000:]}")
                time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="starts of each, in turn")
    parser.add_argument("--ours", action="store_true", help="without vLLM's own server")
    arguments = parser.parse_args()
    console = Console()
    names = [OURS, FULL] if arguments.ours else list(COMMANDS)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        full = fill_registry(Path(folder, "full"))
        for number in range(arguments.rounds):
            for name in names if number % 2 == 0 else names[::-1]:
                with console.status(f"round {number + 1} of {arguments.rounds}: {name}"):
                    seconds[name].append(seconds_to_first_answer(name, full))
    others = [name for name in names if name not in (OURS, FULL)]
    below = {f"ratio to {name}": ratios(seconds[OURS], seconds[name]) for name in others}
    more = [a - b for a, b in zip(seconds[FULL], seconds[OURS], strict=True)]
    table = Table("seconds to the first answer", "min", "median", "max", "aim")
    add_rows(table, seconds)
    add_rows(table, below, aim=AIM)
    add_rows(table, {"seconds more with 10,000 adapters": more}, aim="< 1")
    console.print(table)
    found: dict[str, object] = {
        "command": command_line("benchmarks.startup"),
        "machine": machine(*ENGINE),
    }
    found |= {"seconds": seconds, "ratios": below, "seconds more": more}
    keep("startup_registered" if arguments.ours else "startup", found)


if __name__ == "__main__":
    main()
