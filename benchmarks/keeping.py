"""What it costs that answers are kept for feedback: a user who agreed beside one who did not.

Short chats, streamed, of two users of one adapter who differ in their consent only; they ask in
turn, and who is first changes from round to round. What is kept is read and written beside the
requests, to SQLite on this machine's disk, within the times that are measured.
Rounds are added to `benchmarks/results/keeping.json`, and the table is of all that are there.

    python -m benchmarks.keeping --rounds 5
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
from benchmarks.random_models import base_of, write_adapter
from benchmarks.servers import OURS, Engine, Server, running
from benchmarks.streams import at_once, chat, session, whole

REQUESTS = {1: 60, 8: 160, 32: 320}
"""How many in a round, of each concurrency."""
TOKENS = 16
AGREED, NOT_AGREED = "agreed", "not agreed"
FIGURES = ("first token, p50", "answer, p50", "answer, p99", "requests a second", "CPU a request")
Figures = dict[str, float]


async def measure(
    server: Server, headers: dict[str, str], concurrency: int, first: int, count: int
) -> Figures:
    """Times in ms; the processor's is that of the server's first process, with all its threads."""
    questions = (f"Question {first + i}: what is the capital of Norway?" for i in range(count))
    requests = [chat("bench", question, TOKENS) for question in questions]
    async with session(headers) as client:
        cpu, began = server.front_end_seconds(), time.monotonic()
        answers = await at_once(client, server.url, requests, concurrency)
        seconds, cpu = time.monotonic() - began, server.front_end_seconds() - cpu
    to_first = np.percentile([whole(answer).to_first_token for answer in answers], 50)
    p50, p99 = np.percentile([answer.ended - answer.sent for answer in answers], (50, 99))
    values = (1000 * to_first, 1000 * p50, 1000 * p99, count / seconds, 1000 * cpu / count)
    return {name: round(float(value), 4) for name, value in zip(FIGURES, values, strict=True)}


def rounds(
    server: Server, users: dict[str, dict[str, str]], count: int
) -> list[dict[str, dict[str, Figures]]]:
    """Of each: concurrency → user → figures; the first, for warming up, is not told."""
    found: list[dict[str, dict[str, Figures]]] = []
    numbers = itertools.count(step=1000)
    for number in range(count + 1):
        found.append({})
        order = list(users) if number % 2 == 0 else list(users)[::-1]
        for concurrency, requests in REQUESTS.items():
            told = found[-1][f"{concurrency} at once"] = {}
            few = requests if number else 2 * concurrency
            for user in order:
                work = measure(server, users[user], concurrency, next(numbers), few)
                told[user] = asyncio.run(work)
    return found[1:]


def check_kept(server: Server, expected: int) -> None:
    """A benchmark in which nothing was kept measures nothing."""
    until = time.monotonic() + 20
    while f"bapo_answers_kept_total {expected}.0" not in server.call("GET", "/metrics").text:
        if time.monotonic() > until:
            raise SystemExit(f"not all of {expected} answers were kept")
        time.sleep(0.5)


def report(every: list[dict[str, dict[str, Figures]]]) -> None:
    table = Table(f"{AGREED} / {NOT_AGREED}, {len(every)} rounds", "min", "median", "max", "")
    for concurrency in every[0]:
        for figure in FIGURES:
            sides = [
                [one[concurrency][user][figure] for one in every] for user in (AGREED, NOT_AGREED)
            ]
            add_rows(table, {f"{concurrency}: {figure}": ratios(*sides)})
    Console(width=100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of every concurrency, in turn")
    parser.add_argument("--anew", action="store_true", help="forget the rounds that are kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        base = base_of("pocket", scratch)
        adapter = write_adapter(scratch / "bench", base, rank=16, seed=0)
        with running(OURS, Engine(base), 8931, scratch) as server:
            server.publish("bench", adapter)
            users = {
                AGREED: server.user_headers("ann", "bench"),
                NOT_AGREED: server.user_headers("ben", "bench"),
            }
            server.call("PUT", "/admin/users/ann/feedback", json={"keep": True})
            found = rounds(server, users, arguments.rounds)
            check_kept(server, arguments.rounds * sum(REQUESTS.values()) + 2 * sum(REQUESTS))
    report(add_rounds("keeping", {"rounds": found}, anew=arguments.anew))


if __name__ == "__main__":
    main()
