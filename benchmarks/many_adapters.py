"""Many adapters on few slots: this server against vLLM's own with its filesystem resolver.

Adapters of ranks 8, 16 and 32 in turn, one for each user, on 4 or 8 slots; both sides may keep as
many in host memory. Requests come at times of chance (Poisson), each for an adapter of chance:
uniform, Zipf's (p ∝ 1/rank), or what SGLang calls Zipf's (p ∝ 1.5^-rank). More of them come than
either side can answer at once, so that throughput is the server's and not the clients'; both get
the same ones at the same times. Everything is prepared in WORK, once; the registry is filled in
process. Rounds are added to `benchmarks/results/many_adapters.json`, and the table is of all that
are there.

    make bench-many-adapters ARGS="--adapters 1000 --slots 8 --rounds 1"
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from adapters.accounts import Role
from adapters.base import describe_base
from adapters.registry import open_registry
from benchmarks.figures import add_rounds, ratios
from benchmarks.random_models import BASES, base_of, write_adapter
from benchmarks.servers import ADMIN, OURS, VLLMS, Engine, Server, both, interleaved
from benchmarks.streams import Answer, completion, session, stream

RANKS = (8, 16, 32)
SHAPES = ("uniform", "zipf", "sglang")
IN_HOST_MEMORY = 256
TOKENS = 32
AIMS = {"requests a second": "≥ 1.5", "first token, p99": "≤ 0.5"}
RATIOS = ("requests a second", "first token, p50", "first token, p99", "longest wait")
Figures = dict[str, float]


def name_of(number: int) -> str:
    return f"user-{number:04}"


def prepare(work: Path, base: Path, count: int) -> None:
    """Adapters where vLLM's server looks for them, and published to a registry with their users."""
    info = describe_base(base, name=base.name)
    registry = open_registry(work / "ours")
    known = {user.id for user in registry.accounts.list_users()}
    for number in range(count):
        name = name_of(number)
        if name in known:
            continue
        files = work / "vllms" / name
        if not files.is_dir():
            write_adapter(files, base, rank=RANKS[number % len(RANKS)], seed=number)
        registry.publish(name, files, base=info, activate=True)
        registry.accounts.create_user(name)
        registry.assign(name, name)
    registry.close()


def service_key(work: Path) -> str:
    registry = open_registry(work / "ours")
    key = registry.accounts.create_key_for(Role.SERVICE, None, None)["key"]
    registry.close()
    return str(key)


def picks(shape: str, adapters: int, requests: int, seed: int) -> list[int]:
    """Which adapter each request is for."""
    ranks = np.arange(1, adapters + 1)
    weights = {"uniform": np.ones(adapters), "zipf": 1 / ranks, "sglang": 1.5 ** -(ranks - 1.0)}
    chance = weights[shape] / weights[shape].sum()
    return [int(n) for n in np.random.default_rng(seed).choice(adapters, requests, p=chance)]


async def ask_all(
    server: Server, key: str, base: str, asked: list[int], at: list[float]
) -> list[tuple[float, Answer]]:
    """All requests, each when its time has come; (when that was, answer)."""
    ours = server.name == OURS
    headers = {"Authorization": f"Bearer {key}"} if ours else ADMIN

    async with session(headers) as client:
        start = time.monotonic()

        async def ask(number: int, adapter: int, seconds: float) -> tuple[float, Answer]:
            await asyncio.sleep(start + seconds - time.monotonic())
            name = name_of(adapter)
            prompt = (5 + number % 3000, 6 + adapter, 7)
            request = completion(base if ours else name, prompt, TOKENS)
            user = {"X-User-Id": name} if ours else {}
            return start + seconds, await stream(client, server.url, request, headers=user)

        work = (ask(*one) for one in zip(itertools.count(), asked, at, strict=False))
        return list(await asyncio.gather(*work))


def figures_of(answers: list[tuple[float, Answer]]) -> Figures:
    """Seconds, but for the first three."""
    good = [(due, one) for due, one in answers if one.status == 200 and one.done and one.tokens]
    waits = [one.tokens[0] - due for due, one in good]
    seconds = max(one.ended for _, one in good) - min(due for due, _ in answers)
    p50, p99 = np.percentile(waits, (50, 99))
    return {
        "requests a second": round(len(good) / seconds, 3),
        "requests": len(answers),
        "refused": len(answers) - len(good),
        "first token, p50": round(float(p50), 4),
        "first token, p99": round(float(p99), 4),
        "longest wait": round(max(waits), 4),
    }


def evictions(server: Server) -> float:
    """From host memory, up to now; vLLM's server does not tell."""
    if server.name != OURS:
        return 0.0
    lines = server.call("GET", "/metrics").text.splitlines()
    name = "bapo_adapter_evictions_total"
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def measure(
    server: Server, key: str, base: Path, arguments: argparse.Namespace, shape: str, seed: int
) -> Figures:
    count = round(arguments.rate * arguments.seconds)
    asked = picks(shape, arguments.adapters, count, seed)
    gaps = np.random.default_rng(seed).exponential(1 / arguments.rate, count)
    before = evictions(server)
    answers = asyncio.run(ask_all(server, key, base.name, asked, np.cumsum(gaps).tolist()))
    found = figures_of(answers)
    found["distinct adapters"] = len(set(asked))
    if server.name == OURS:
        found["evictions"] = evictions(server) - before
    found["MiB of memory"] = round(server.memory_bytes() / 2**20)
    return found


def combination(one: dict[str, Any]) -> str:
    return f"{one['adapters']} on {one['slots']}, {one['shape']}, {one['rate']:g}/s"


def report(every: list[dict[str, Any]]) -> None:
    table = Table("ours / vLLM's", "rounds", "min", "median", "max", "aim")
    for name in dict.fromkeys(map(combination, every)):
        rows = [one for one in every if combination(one) == name]
        for figure in RATIOS:
            found = ratios(*([one[side][figure] for one in rows] for side in (OURS, VLLMS)))
            low, middle, high = np.percentile(found, (0, 50, 100))
            aim = AIMS.get(figure, "") if name.startswith("1000 on") and "zipf" in name else ""
            told = (f"{low:.2f}", f"{middle:.2f}", f"{high:.2f}")
            table.add_row(f"{name}: {figure}", str(len(rows)), *told, aim)
    Console(width=110).print(table)
    absolute = Table("last round", *RATIOS, "refused")
    for side in (OURS, VLLMS):
        values = [every[-1][side][figure] for figure in (*RATIOS, "refused")]
        absolute.add_row(f"{combination(every[-1])}, {side}", *map(str, values))
    Console(width=110).print(absolute)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/many_adapters"))
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--rate", type=float, default=60.0, help="requests a second that come")
    parser.add_argument("--seconds", type=float, default=10.0, help="for so long")
    parser.add_argument("--seed", type=int, default=0, help="of the requests of the first round")
    parser.add_argument("--anew", action="store_true", help="forget the rounds that are kept")
    parser.add_argument("--prepare", action="store_true", help="only write and publish adapters")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--base", choices=BASES, default="pocket")
    arguments = parser.parse_args()
    work = arguments.work.resolve() / f"{arguments.base}-{arguments.adapters}"
    work.mkdir(parents=True, exist_ok=True)
    base = base_of(arguments.base, work)
    prepare(work, base, arguments.adapters)
    if arguments.prepare:
        return
    key = service_key(work)
    engine = Engine(
        base,
        slots=arguments.slots,
        rank=max(RANKS),
        host_adapters=IN_HOST_MEMORY,
        device=arguments.device,
    )
    files = [work / "vllms" / name_of(n) / "adapter_model.safetensors" for n in range(len(RANKS))]
    mean = sum(file.stat().st_size for file in files) / len(files)
    room = {
        "BAPO_ADAPTER_MEMORY_MEBIBYTES": str(max(1, round(IN_HOST_MEMORY * mean / 2**20))),
    }
    found: list[dict[str, Any]] = []
    with both(engine, work, room) as servers:
        for number in range(arguments.rounds):
            for place, shape in enumerate(arguments.shapes):
                one: dict[str, Any] = {
                    "adapters": arguments.adapters,
                    "slots": arguments.slots,
                    "rate": arguments.rate,
                    "shape": shape,
                }
                for server in interleaved(number + place, servers):
                    seed = arguments.seed + 100 * number + place
                    one[server.name] = measure(server, key, base, arguments, shape, seed)
                found.append(one)
    run = {"base": arguments.base, **room, "rounds": found}
    report(add_rounds("many_adapters", run, device=arguments.device, anew=arguments.anew))


if __name__ == "__main__":
    main()
