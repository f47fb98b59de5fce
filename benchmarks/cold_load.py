"""What a cold load does to others, and how soon a new adapter answers: against vLLM's own server.

Four streams of one adapter run while another one, of about 1, 20 or 80 MB, is used for the first
time: once right after it is uploaded, and once long after, so that only loading it is left.
Longest and summed gap: of the streams' pauses between two tokens from the beginning of that to the
newcomer's first token, what is above the pause that the same streams had before. An upload: ours
receives the files over HTTP, checks, rewrites and stores them; vLLM's has them copied into its
folder. To load: ours does at the first request, vLLM's is told to, first. Alpha is twice the rank,
as in most recipes, so that there is something to fold in. The base is as wide as such adapters need
and has random weights. Rounds are added to `benchmarks/results/cold_load.json`, and the table is
of all that are there.

    make bench-cold-load ARGS="--rounds 3 --sizes '20 MB'"
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from itertools import pairwise, product
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.figures import add_rounds, add_rows, ratios
from benchmarks.random_models import ATTENTION, MLP, write_adapter, write_base
from benchmarks.servers import ADMIN, OURS, SIDES, VLLMS, Engine, Server, both, interleaved
from benchmarks.streams import Answer, completion, session, stream, whole

SHAPES = {
    "cpu": {"hidden": 1024, "layers": 16, "intermediate": 2816, "heads": 16},
    "cuda": {"hidden": 4096, "layers": 32, "intermediate": 14336, "heads": 32},
}
EVERY = ATTENTION + MLP
SIZES = {
    "cpu": {"1 MB": (8, ("q_proj", "v_proj")), "20 MB": (32, EVERY), "80 MB": (128, EVERY)},
    "cuda": {"4 MB": (8, ("q_proj", "v_proj")), "84 MB": (16, EVERY), "671 MB": (128, EVERY)},
}
"""Rank and modules; bf16."""
STREAMS = 4
BEGUN_TOKENS = 8
QUIET_SECONDS = 2.0
"""A stream has its usual pause after so many tokens, and so much later something is loaded."""
USUAL, LONGEST, SUMMED, FIRST = "usual pause", "longest gap", "summed gap", "first token"
UPLOADED, PUBLISHED = "uploaded", "published before"
WAYS = (PUBLISHED, UPLOADED)
AIMS = {LONGEST: "≤ 0.10", SUMMED: "≤ 0.10", FIRST: "≤ 0.33"}
Round = dict[str, dict[str, float]]


async def cold_load(
    server: Server, name: str, files: Path, way: str, tokens: int
) -> dict[str, float]:
    """Seconds: the usual pause between tokens, gaps above it, and until the first token."""
    if way == PUBLISHED:
        await asyncio.to_thread(server.put, name, files)
    answers = [Answer() for _ in range(STREAMS)]
    async with session(ADMIN) as client:
        streams = [
            asyncio.create_task(
                stream(client, server.url, completion("warm", (5 + i, 6, 7), tokens), answer)
            )
            for i, answer in enumerate(answers)
        ]
        while min(len(answer.tokens) for answer in answers) < BEGUN_TOKENS:
            if any(task.done() for task in streams):
                raise SystemExit(f"a stream ended with {answers[0].status} before it had begun")
            await asyncio.sleep(0.01)
        await asyncio.sleep(QUIET_SECONDS)
        began = time.monotonic()
        if way == UPLOADED:
            await asyncio.to_thread(server.put, name, files)
        await asyncio.to_thread(server.load, name)
        first = whole(await stream(client, server.url, completion(name, (5, 6, 7, 8), 1)))
        if any(task.done() for task in streams):
            raise SystemExit("the streams ended before the load did: raise --tokens")
        await asyncio.sleep(0.3)
        for task in streams:
            task.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
    return {**gaps(answers, began, first.ended), FIRST: first.ended - began}


def gaps(answers: list[Answer], began: float, ended: float) -> dict[str, float]:
    """The usual pause of the streams, and by how much those of a span of time were above it."""
    pauses = [(at, at - before) for one in answers for before, at in pairwise(one.tokens)]
    usual = statistics.median(pause for at, pause in pauses if at < began)
    above = [max(0.0, p - usual) for at, p in pauses if began <= at and at - p <= ended]
    return {USUAL: usual, LONGEST: max(above), SUMMED: sum(above)}


def rounds(
    servers: dict[str, Server], scratch: Path, base: Path, arguments: argparse.Namespace
) -> list[Round]:
    """Of each: side → figures, with the adapter's size."""
    found: list[Round] = []
    sizes = SIZES[arguments.device]
    for number in range(arguments.rounds + 1):
        for size in arguments.sizes or sizes:
            rank, modules = sizes[size]
            files = write_adapter(
                scratch / f"{size} {number}",
                base,
                rank=rank,
                seed=number + 1,
                modules=modules,
                alpha=2 * rank,
            )
            measured: Round = {side: {} for side in servers}
            for way, server in product(WAYS, interleaved(number, servers)):
                name = f"{size[:-3]}-{number}-{way[:9]}"
                seconds = asyncio.run(cold_load(server, name, files, way, arguments.tokens))
                told = {f"{way}, {figure}": round(s, 5) for figure, s in seconds.items()}
                measured[server.name].update(told)
            if number:  # the first is for warming up
                megabytes = (files / "adapter_model.safetensors").stat().st_size / 1e6
                found.append({"adapter": {"MB": round(megabytes, 1)}, **measured})
    return found


def report(every: list[Round], sizes: dict[str, object]) -> None:
    table = Table("seconds, and ratios to vLLM's", "min", "median", "max", "aim")
    for size in sizes:
        wanted = float(size.split()[0])
        of_size = [one for one in every if 0.5 < one["adapter"]["MB"] / wanted < 2]
        for way, figure in product(WAYS, (USUAL, *AIMS)):
            rows = [one for one in of_size if f"{way}, {figure}" in one[OURS]]
            if not rows:  # the first rounds were of uploads only
                continue
            told = f"{size}, {way}: {figure}"
            ours, theirs = ([one[side][f"{way}, {figure}"] for one in rows] for side in SIDES)
            add_rows(table, {f"{told}, {OURS}": ours, f"{told}, {VLLMS}": theirs}, digits=3)
            if aim := AIMS.get(figure):
                add_rows(table, {f"{told}: ratio": ratios(ours, theirs)}, aim=aim)
    Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of every size, in turn")
    parser.add_argument("--anew", action="store_true", help="forget the rounds that are kept")
    parser.add_argument("--tokens", type=int, default=1500, help="longest a stream may get")
    parser.add_argument("--device", choices=SHAPES, default="cpu")
    parser.add_argument("--sizes", nargs="+", help="some of the sizes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        base = write_base(scratch / "wide", **SHAPES[arguments.device])
        engine = Engine(base, slots=4, rank=128, device=arguments.device)
        warm = write_adapter(scratch / "first", base, rank=8, seed=0)
        with both(engine, scratch) as servers:
            for server in servers.values():
                server.publish("warm", warm)
            found = rounds(servers, scratch, base, arguments)
    run = {"base": SHAPES[arguments.device], "rounds": found}
    kept = add_rounds("cold_load", run, device=arguments.device, anew=arguments.anew)
    report(kept, dict(SIZES[arguments.device]))


if __name__ == "__main__":
    main()
