"""How fast and how small the registry's view is, with 10,000 users and as many adapters.

Each user has a key and limits of his own, owns an adapter of three versions that is granted to two
others and a group of a hundred, is assigned one, and takes part in an experiment of four arms that
begins half-way. Resolving is timed call by call while the view polls and another process activates
versions. Memory is tracemalloc's: what a view holds, without and with adapters.
Raw figures go to `benchmarks/results/registry.json`.

    make bench-registry ARGS="--count 10000"
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors.numpy import save_file
from sqlalchemy import insert

from adapters.accounts import Role
from adapters.arms import Arm
from adapters.base import BaseModelInfo
from adapters.db import (
    AdapterRow,
    AllowanceRow,
    AuditRow,
    Base,
    GrantRow,
    GroupGrantRow,
    GroupRow,
    KeyRow,
    MemberRow,
    UserRow,
    VersionRow,
    writing,
)
from adapters.registry import Registry, open_registry
from adapters.view import RegistryView
from benchmarks.figures import command_line, keep, machine

CALLS, ROUNDS = 100_000, 10
LOOKS = 300
PUBLISHES = 60
CHANGES_PER_SECOND = 20
GROUP_OF = 100
EXPERIMENT = "tones"
ARMS = 4
AIM_MICROSECONDS, AIM_BYTES = 50, 1024
TIMED_WITH_AN_AIM = ("user → version", "user in an experiment → version")

MODULE = "model.layers.0.self_attn.q_proj"
BASE = BaseModelInfo(
    name="tiny", fingerprint="sha256:" + "a" * 64, modules={MODULE: (64, 64)}, norms={MODULE: 8.0}
)


def user(number: int) -> str:
    return f"user-{number:05}"


def adapter(number: int) -> str:
    return f"{user(number)}/tone"


def secret(number: int) -> str:
    return f"bapo_{number:016x}_{hashlib.sha256(str(number).encode()).hexdigest()[:43]}"


def people(count: int) -> Iterator[tuple[type[Base], list[dict[str, Any]]]]:
    """Users, each with a key, limits and in a group, as rows of each table."""
    everyone = range(count)
    yield UserRow, [{"id": user(n), "assigned": None} for n in everyone]
    yield (
        KeyRow,
        [
            {
                "id": f"{n:016x}",
                "role": Role.USER,
                "user_id": user(n),
                "digest": hashlib.sha256(secret(n).encode()).hexdigest(),
            }
            for n in everyone
        ],
    )
    yield AllowanceRow, [{"user_id": user(n), "requests_per_minute": 1000 + n} for n in everyone]
    yield GroupRow, [{"id": f"group-{n}"} for n in range(-(-count // GROUP_OF))]
    yield MemberRow, [{"group_id": f"group-{n // GROUP_OF}", "user_id": user(n)} for n in everyone]
    yield AuditRow, [{"actor": "b", "action": "user.create", "subject": user(n)} for n in everyone]


def works(count: int) -> Iterator[tuple[type[Base], list[dict[str, Any]]]]:
    """Their adapters, with versions and grants."""
    everyone = range(count)
    yield AdapterRow, [{"id": adapter(n), "owner": user(n), "active_version": 2} for n in everyone]
    yield (
        VersionRow,
        [
            {
                "adapter_id": adapter(n),
                "version": version,
                "digest": "sha256:" + hashlib.sha256(f"{n} {version}".encode()).hexdigest(),
                "rank": 16,
                "bytes": 20_000_000 + n,
                "base_fingerprint": BASE.fingerprint,
            }
            for n in everyone
            for version in (1, 2, 3)
        ],
    )
    yield (
        GrantRow,
        [
            {"adapter_id": adapter(n), "user_id": user((n + step) % count)}
            for n in everyone
            for step in (1, 7)
        ],
    )
    yield (
        GroupGrantRow,
        [{"adapter_id": adapter(n), "group_id": f"group-{n // GROUP_OF}"} for n in everyone],
    )


def fill(registry: Registry, tables: Iterator[tuple[type[Base], list[dict[str, Any]]]]) -> None:
    with writing(registry.engine) as session:
        for table, rows in tables:
            session.execute(insert(table), rows)


def bytes_of(registry: Registry) -> int:
    """What a view of this registry holds: the least of three, for now and then one of them makes
    the interpreter's own table of names grow, which is nobody's."""
    return min(_bytes_of_one(registry) for _ in range(3))


def _bytes_of_one(registry: Registry) -> int:
    RegistryView(registry)  # what SQLAlchemy keeps for later is not the view's
    gc.collect()
    tracemalloc.start()
    held = RegistryView(registry)
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del held
    return size


def microseconds(
    call: Callable[[Any], object], arguments: Sequence[Any], rounds: int = 1
) -> dict[str, float]:
    """p50, p99 and max of single calls."""
    taken = np.empty(len(arguments) * rounds)
    for number, argument in enumerate(chain.from_iterable(repeat(arguments, rounds))):
        began = time.perf_counter_ns()
        call(argument)
        taken[number] = time.perf_counter_ns() - began
    p50, p99 = np.percentile(taken, (50, 99)) / 1000
    return {"p50": float(p50), "p99": float(p99), "max": float(taken.max() / 1000)}


@contextlib.contextmanager
def changing(folder: Path, count: int) -> Iterator[None]:
    """Another process activates versions meanwhile."""
    command = [sys.executable, "-m", "benchmarks.registry", "--count", str(count), "--change"]
    with subprocess.Popen([*command, str(folder)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.terminate()


def change(folder: Path, count: int) -> None:
    """What that process does, until it is ended."""
    registry = open_registry(folder)
    print("ready", flush=True)
    while True:
        registry.activate(adapter(random.randrange(count)), random.randint(1, 3))
        time.sleep(1 / CHANGES_PER_SECOND)


def resolving(registry: Registry, folder: Path, count: int) -> dict[str, dict[str, float]]:
    """Microseconds of every question of a request, while the view follows another process."""
    picks = [random.randrange(count) for _ in range(CALLS)]
    names = [user(n) for n in picks]
    secrets = [secret(n) for n in picks]
    few = names[: CALLS // 10]
    with RegistryView(registry) as view, changing(folder, count):

        def own(name: str) -> object:
            return view.resolve(f"{name}/tone", user_id=name)

        def listed(name: str) -> object:
            return view.usable(user_id=name)

        found = {
            "key → caller": microseconds(view.verify_key, secrets, ROUNDS),
            "user → version": microseconds(view.assigned, names, ROUNDS),
            "user and name → version": microseconds(own, names, ROUNDS),
            "user → limits": microseconds(view.allowance, names, ROUNDS),
            "user → all he may use (103)": microseconds(listed, few),
            "user → version, in the database": microseconds(registry.assigned, few[:1000]),
        }
        registry.experiments.start(EXPERIMENT)
        view.refresh()
        found["user in an experiment → version"] = microseconds(view.assigned, names, ROUNDS)
        return found


def looking(registry: Registry, count: int) -> dict[str, dict[str, float]]:
    """Microseconds of a look that finds nothing, and of one that finds one change."""
    view = RegistryView(registry)
    nothing = microseconds(lambda _: view.refresh(), range(LOOKS))
    taken = []
    for number in range(LOOKS):
        registry.activate(adapter(number % count), 1 + number // count % 2)
        began = time.perf_counter_ns()
        view.refresh()
        taken.append((time.perf_counter_ns() - began) / 1000)
    p99 = statistics.quantiles(taken, n=100)[-1]
    one = {"p50": statistics.median(taken), "p99": p99, "max": max(taken)}
    return {"a look without a change": nothing, "a look with one change": one}


def publishes_per_second(registry: Registry, work: Path) -> float:
    """Small adapters of different content, checked, rewritten and made durable one by one."""
    folders = [small_adapter(work / str(n), n) for n in range(PUBLISHES)]
    began = time.perf_counter()
    for number, folder in enumerate(folders):
        registry.publish(f"new-{number}", folder, base=BASE, activate=True)
    return PUBLISHES / (time.perf_counter() - began)


def small_adapter(folder: Path, seed: int) -> Path:
    folder.mkdir()
    draw = np.random.default_rng(seed)
    sides = {
        f"base_model.model.{MODULE}.lora_{side}.weight": draw.normal(0, 0.02, shape)
        for side, shape in (("A", (8, 64)), ("B", (64, 8)))
    }
    weights = {name: values.astype(np.float32) for name, values in sides.items()}
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def show(found: Mapping[str, Any], console: Console) -> None:
    table = Table("microseconds", "p50", "p99", "max", "aim")
    for name, row in found["microseconds"].items():
        aim = f"p99 < {AIM_MICROSECONDS}" if name in TIMED_WITH_AN_AIM else ""
        table.add_row(name, *(f"{row[k]:,.1f}" for k in ("p50", "p99", "max")), aim)
    console.print(table)
    table = Table("", "", "aim")
    for kind in ("user", "adapter"):
        table.add_row(f"bytes per {kind}", str(found[f"bytes per {kind}"]), f"< {AIM_BYTES}")
    table.add_row("seconds to load the view", f"{found['seconds to load']:.2f}", "")
    table.add_row("publishes per second", f"{found['publishes per second']:.0f}", "")
    console.print(table)


def measure(count: int, folder: Path) -> dict[str, Any]:
    registry = open_registry(folder / "full")
    fill(registry, people(count))
    users = bytes_of(registry)
    fill(registry, works(count))
    for_adapters = bytes_of(registry) - users
    enrol_all(registry, count)
    users = bytes_of(registry) - for_adapters
    began = time.perf_counter()
    RegistryView(registry)
    loading = time.perf_counter() - began
    found = {
        "microseconds": {
            **resolving(registry, folder / "full", count),
            **looking(registry, count),
        },
        "bytes per user": users // count,
        "bytes per adapter": for_adapters // count,
        "seconds to load": loading,
        "publishes per second": publishes_per_second(registry, folder),
    }
    registry.close()
    return found


def enrol_all(registry: Registry, count: int) -> None:
    """Assign everyone his own adapter, and enrol him in an experiment that has not begun."""
    arms = [Arm.of(f"arm-{n}", adapter(n % count), weight=n + 1) for n in range(ARMS)]
    registry.experiments.create(EXPERIMENT, arms)
    with writing(registry.engine) as session:
        for row in session.query(UserRow):
            row.assigned, row.experiment = f"{row.id}/tone", EXPERIMENT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="users, and adapters")
    parser.add_argument("--change", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.change:
        change(arguments.change, arguments.count)
    console = Console()
    told = {"command": command_line("benchmarks.registry"), "machine": machine("sqlalchemy")}
    with console.status("measuring"), tempfile.TemporaryDirectory() as folder:
        found = measure(arguments.count, Path(folder))
    show(found, console)
    keep("registry", {**told, "count": arguments.count, **found})


if __name__ == "__main__":
    main()
