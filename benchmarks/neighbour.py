"""A naive neighbour for scale: eight users without a server that shares one base among adapters.

Three ways to answer eight users, each with an adapter of his own: this server; one `transformers`
and PEFT process that swaps adapters with `set_adapter` for each request; and a process of that kind
for each user. Every user asks the same number of greedy completions, all users at once. Memory is
what no process shares with another (USS), summed, after the work. Rounds are added to
`benchmarks/results/neighbour.json`, and the table is of all that are there.

    make bench-neighbour ARGS="--rounds 3"
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.figures import add_rounds, add_rows, ratios
from benchmarks.random_models import BASES, base_of, write_adapter
from benchmarks.servers import ADMIN, OURS, Engine, Server, descendants, private_bytes, running
from benchmarks.streams import at_once, completion, session, whole

USERS = 8
SWAPPING, EACH = "one process, set_adapter", "a process a user"
SPEED, MEMORY = "tokens a second", "MiB of memory"
Figures = dict[str, float]


class Neighbours:
    """`neighbour_side` processes; each has some of the adapters."""

    def __init__(self, processes: list[subprocess.Popen[str]]) -> None:
        self._processes = processes
        for process in processes:
            _line_of(process, "ready")

    def tokens_a_second(self, requests: int, tokens: int) -> float:
        """Every process does its users' requests, all processes at once."""
        began = time.monotonic()
        for process in self._processes:
            assert process.stdin is not None
            print(requests, tokens, file=process.stdin, flush=True)
        for process in self._processes:
            _line_of(process, "done")
        return USERS * requests * tokens / (time.monotonic() - began)

    def memory_bytes(self) -> int:
        pids = [process.pid for process in self._processes]
        return sum(map(private_bytes, [*pids, *(p for pid in pids for p in descendants(pid))]))


def _line_of(process: subprocess.Popen[str], expected: str) -> None:
    assert process.stdout is not None
    if not any(line.strip() == expected for line in iter(process.stdout.readline, "")):
        raise SystemExit(f"a neighbour ended with {process.wait()}")


@contextlib.contextmanager
def neighbours(base: Path, shares: list[list[Path]], device: str) -> Iterator[Neighbours]:
    """A process for each share of the adapters; the machine's cores are divided among them."""
    threads = max(1, len(os.sched_getaffinity(0)) // len(shares))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    with contextlib.ExitStack() as started:
        processes = []
        for share in shares:
            command = [sys.executable, "-m", "benchmarks.neighbour_side", device, str(base)]
            process = subprocess.Popen(
                [*command, *map(str, share)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            started.callback(process.wait)
            started.callback(process.kill)
            processes.append(process)
        yield Neighbours(processes)


async def ask_ours(server: Server, requests: int, tokens: int) -> float:
    every = [
        completion(f"user-{user}", (5 + user, 6 + number, 7, 8), tokens)
        for number in range(requests)
        for user in range(USERS)
    ]
    async with session(ADMIN) as client:
        began = time.monotonic()
        for answer in await at_once(client, server.url, every, USERS):
            whole(answer)
        return USERS * requests * tokens / (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of the three, in turn")
    parser.add_argument("--requests", type=int, default=4, help="of each user in a round")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--anew", action="store_true", help="forget the rounds that are kept")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--base", choices=BASES, default="pocket")
    arguments = parser.parse_args()
    work = (arguments.requests, arguments.tokens)
    found: list[dict[str, Figures]] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as started:
        scratch = Path(folder)
        base = base_of(arguments.base, scratch)
        adapters = [write_adapter(scratch / str(n), base, rank=16, seed=n) for n in range(USERS)]
        engine = Engine(base, device=arguments.device)
        server = started.enter_context(running(OURS, engine, 8921, scratch))
        for user, files in enumerate(adapters):
            server.publish(f"user-{user}", files)
        others = {
            name: started.enter_context(neighbours(base, shares, arguments.device))
            for name, shares in ((SWAPPING, [adapters]), (EACH, [[one] for one in adapters]))
        }
        for number in range(arguments.rounds + 1):
            speeds = {OURS: asyncio.run(ask_ours(server, *work))}
            speeds |= {name: side.tokens_a_second(*work) for name, side in others.items()}
            memory = {OURS: server.memory_bytes()}
            memory |= {name: side.memory_bytes() for name, side in others.items()}
            if number:  # the first is for warming up
                found.append(
                    {
                        side: {SPEED: round(speeds[side], 1), MEMORY: round(memory[side] / 2**20)}
                        for side in speeds
                    }
                )
    run = {"base": arguments.base, "rounds": found}
    report(add_rounds("neighbour", run, device=arguments.device, anew=arguments.anew))


def report(every: list[dict[str, Figures]]) -> None:
    table = Table("eight users", "min", "median", "max", "")
    for figure in (SPEED, MEMORY):
        rows = {side: [one[side][figure] for one in every] for side in every[0]}
        add_rows(table, {f"{figure}: {side}": row for side, row in rows.items()}, digits=0)
        for side in (SWAPPING, EACH):
            add_rows(table, {f"{figure}: ours / {side}": ratios(rows[OURS], rows[side])})
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
