"""What this server costs above vLLM's own: requests a second, first tokens, front-end CPU.

Ours has everything on: a user's key, his assignment, limits and a budget, metrics, the log. vLLM's
own server has none of that; it logs a line a request as it comes. Same engine settings, same
adapter, and vLLM's has our LoRA products, too, so that front ends are compared and not kernels.
Short chats, streamed, each with a prompt of its own; both servers stand side by side and are asked
in turn.
Rounds are added to `benchmarks/results/overhead.json`, and the table is of all that are there.

    make bench-overhead ARGS="--rounds 3"
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.figures import add_rounds, add_rows, ratios
from benchmarks.random_models import BASES, base_of, write_adapter
from benchmarks.servers import OURS, VLLMS, Engine, Server, both, interleaved
from benchmarks.streams import at_once, chat, session, whole

REQUESTS = {
    (1, 1): 600,
    (8, 1): 1200,
    (32, 1): 1920,
    (1, 64): 100,
    (8, 64): 200,
    (32, 64): 320,
}
"""How many in a round, of each concurrency and number of tokens: fewer have no 99th percentile."""
EVERYTHING_ON = {
    "BAPO_USER_REQUESTS_PER_MINUTE": "1000000",
    "BAPO_USER_TOKENS_PER_MINUTE": "1000000000",
    "BAPO_USER_STREAMS": "1000",
    "BAPO_USER_TOKENS_PER_MONTH": "1000000000000",
    "BAPO_KEY_REQUESTS_PER_MINUTE": "1000000",
    "BAPO_KEY_TOKENS_PER_MINUTE": "1000000000",
}
AIMS = {
    "requests a second": "≥ 0.98",
    "first token, p50": "≤ 1.03",
    "first token, p99": "≤ 1.03",
    "front-end CPU a request": "≤ 1.05",
}
Figures = dict[str, float]


async def measure(
    server: Server, headers: dict[str, str], concurrency: int, tokens: int, first: int, count: int
) -> Figures:
    questions = (f"Question {first + i}: what is the capital of Norway?" for i in range(count))
    requests = [chat("bench", question, tokens) for question in questions]
    async with session(headers) as client:
        cpu, began = server.front_end_seconds(), time.monotonic()
        answers = await at_once(client, server.url, requests, concurrency)
        seconds, cpu = time.monotonic() - began, server.front_end_seconds() - cpu
    to_first = [whole(answer).to_first_token for answer in answers]
    p50, p99 = np.percentile(to_first, (50, 99))
    values = (count / seconds, 1000 * float(p50), 1000 * float(p99), 1000 * cpu / count)
    return dict(zip(AIMS, (round(value, 4) for value in values), strict=True))


def rounds(
    servers: dict[str, Server], headers: dict[str, dict[str, str]], count: int
) -> list[dict[str, dict[str, Figures]]]:
    """Of each: combination → side → figures; the first, for warming up, is not told."""
    found: list[dict[str, dict[str, Figures]]] = []
    numbers = itertools.count(step=2000)
    for number in range(count + 1):
        found.append({})
        for (concurrency, tokens), requests in REQUESTS.items():
            told = found[-1][f"{concurrency} at once, tokens {tokens}"] = {}
            few = requests if number else 2 * concurrency
            for server in interleaved(number, servers):
                work = measure(
                    server, headers[server.name], concurrency, tokens, next(numbers), few
                )
                told[server.name] = asyncio.run(work)
    return found[1:]


def idle_share(servers: dict[str, Server], seconds: float = 5.0) -> Figures:
    """Of one core, what each server uses while nobody asks: it must not slow the other down."""
    before = {name: server.all_seconds() for name, server in servers.items()}
    time.sleep(seconds)
    return {
        name: round((servers[name].all_seconds() - before[name]) / seconds, 4) for name in servers
    }


def report(every: list[dict[str, dict[str, Figures]]]) -> None:
    table = Table(f"ours / vLLM's, {len(every)} rounds", "min", "median", "max", "aim")
    for combination in every[0]:
        for figure, aim in AIMS.items():
            sides = [[one[combination][side][figure] for one in every] for side in (OURS, VLLMS)]
            add_rows(table, {f"{combination}: {figure}": ratios(*sides)}, aim=aim)
    Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of every combination, in turn")
    parser.add_argument("--anew", action="store_true", help="forget the rounds that are kept")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--base", choices=BASES, default="pocket", help="random weights but pocket")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        base = base_of(arguments.base, scratch)
        engine = Engine(base, our_kernels=True, device=arguments.device)
        adapter = write_adapter(scratch / "bench", base, rank=16, seed=0)
        with both(engine, scratch, EVERYTHING_ON) as servers:
            headers = {}
            for name, server in servers.items():
                server.publish("bench", adapter)
                headers[name] = server.user_headers("ann", "bench")
            idle = idle_share(servers)
            found = rounds(servers, headers, arguments.rounds)
    run = {"base": arguments.base, "idle, cores": idle, "rounds": found}
    report(add_rounds("overhead", run, device=arguments.device, anew=arguments.anew))


if __name__ == "__main__":
    main()
