"""Many at once, in threads and in processes, some of them killed: nothing is lost or torn."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import func, select, text

from adapters.base import BaseModelInfo
from adapters.db import ActivationRow, reading, writing
from adapters.errors import VersionConflict
from adapters.registry import Registry, open_registry

from postgres import Postgres

Child = Callable[..., subprocess.Popen[str]]

# Opens the registry and says "ready"; begins at a line on stdin, and says what was acknowledged.
WORKER = """
import json, sys
from pathlib import Path
from adapters.base import BaseModelInfo
from adapters.errors import VersionConflict
from adapters.registry import open_registry

data, url, base, how, *folders = sys.argv[1:]
base = BaseModelInfo.model_validate_json(base)
registry = open_registry(Path(data), url or None)
print("ready", flush=True)
sys.stdin.readline()

def say(*words):
    print(json.dumps(words), flush=True)

def swap(version):
    while True:
        active = registry.describe("shared")["active_version"] or 0
        try:
            registry.activate("shared", version, expected_version=active)
            return say("swapped", active, version)
        except VersionConflict:
            continue

for folder in folders:
    made = registry.publish("shared", Path(folder), base=base, activate=how == "activate")
    say("published", made.engine_id, made.version, made.digest)
    if how == "swap":
        swap(made.version)
registry.close()
"""


def arguments(
    data: Path, url: str | None, base: BaseModelInfo, how: str, folders: list[Path]
) -> list[str]:
    return [str(data), url or "", base.model_dump_json(), how, *map(str, folders)]


def begun(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("go\n")
    process.stdin.flush()


Said = list[tuple[str | int, ...]]


def acknowledged(processes: list[subprocess.Popen[str]]) -> Said:
    """Everything that they have said, once all are done and well."""
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return [tuple(json.loads(line)) for lines in said for line in lines.splitlines()]


def test_threads_publish_at_once(
    registry: Registry, craft: Callable[..., Path], base: BaseModelInfo
) -> None:
    folders = [craft(seed=seed) for seed in range(24)]
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda f: registry.publish("shared", f, base=base), folders))
    assert sorted(version.version for version in made) == list(range(1, 25))
    assert len({version.engine_id for version in made}) == 24


def test_threads_with_one_idempotency_key(
    registry: Registry, craft: Callable[..., Path], base: BaseModelInfo
) -> None:
    folder = craft()

    def publish(_: int) -> int:
        return registry.publish("shared", folder, base=base, idempotency_key="k").engine_id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(publish, range(16)))) == 1
    assert len(registry.describe("shared")["versions"]) == 1


def test_only_one_of_many_swaps(
    registry: Registry, craft: Callable[..., Path], base: BaseModelInfo
) -> None:
    for seed in range(9):
        registry.publish("shared", craft(seed=seed), base=base)
    registry.activate("shared", 1)

    def swap(version: int) -> bool:
        try:
            registry.activate("shared", version, expected_version=1)
        except VersionConflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(swap, range(2, 10)))
    assert sum(won) == 1
    assert registry.resolve("shared", is_admin=True).version == 2 + won.index(True)


def test_readers_are_not_held_up_by_a_writer(
    registry: Registry, craft: Callable[..., Path], base: BaseModelInfo
) -> None:
    registry.publish("shared", craft(), base=base, activate=True)
    with writing(registry.engine) as session:
        session.execute(text("update adapters set public = true"))
        began = time.perf_counter()
        assert registry.resolve("shared", is_admin=True).version == 1
        assert time.perf_counter() - began < 1


@pytest.fixture(params=["sqlite", "postgresql"])
def unprepared(request: pytest.FixtureRequest) -> str | None:
    """A database without tables; None is the one in the data folder."""
    if request.param == "sqlite":
        return None
    server: Postgres = request.getfixturevalue("postgres_server")
    return server.create_database()


def test_eight_processes_publish_and_activate_at_once(
    craft: Callable[..., Path],
    base: BaseModelInfo,
    tmp_path: Path,
    unprepared: str | None,
    child: Child,
) -> None:
    """No tables yet: all bring the database up to date, and then all publish the same adapter.

    Half of them activate as they publish, half compare and swap until they get through.
    """
    data = tmp_path / "data"
    folders = [craft(seed=seed) for seed in range(32)]
    hows = ["activate", "swap"] * 4
    parts = [folders[4 * number : 4 * number + 4] for number in range(8)]
    processes = [
        child(WORKER, *arguments(data, unprepared, base, how, part))
        for how, part in zip(hows, parts, strict=True)
    ]
    for process in processes:
        begun(process)
    said = acknowledged(processes)
    made = {words[1:] for words in said if words[0] == "published"}
    assert len(made) == 32
    assert len({engine_id for engine_id, _, _ in made}) == 32

    registry = open_registry(data, unprepared)
    described = registry.describe("shared")
    assert [v["version"] for v in described["versions"]] == list(range(1, 33))
    assert {(v["version"], v["digest"]) for v in described["versions"]} == {m[1:] for m in made}
    moves = [
        e.details for e in reversed(registry.audit("shared", limit=1000)) if e.details.get("after")
    ]
    assert len(moves) == 32
    assert moves[0]["before"] is None
    assert all(one["after"] == following["before"] for one, following in pairwise(moves))
    assert moves[-1]["after"] == described["active_version"]
    swaps = {("swapped", move["before"] or 0, move["after"]) for move in moves}
    assert {words for words in said if words[0] == "swapped"} <= swaps
    with reading(registry.engine) as session:
        assert session.scalar(select(func.count()).select_from(ActivationRow)) == 32
    for digest in registry.digests():
        registry.store.verify(digest)
    registry.close()


@pytest.mark.parametrize("milliseconds", [3, 10, 25])
def test_a_killed_publisher_leaves_nothing_half_done(
    craft: Callable[..., Path],
    base: BaseModelInfo,
    tmp_path: Path,
    database_url: str | None,
    child: Child,
    milliseconds: int,
) -> None:
    data = tmp_path / "data"
    folders = [craft(seed=seed) for seed in range(40)]
    process = child(WORKER, *arguments(data, database_url, base, "activate", folders))
    begun(process)
    assert process.stdout is not None
    lines = [process.stdout.readline()]
    time.sleep(milliseconds / 1000)
    process.kill()
    lines += [line for line in process.stdout if line.endswith("]\n")]
    assert process.wait() == -signal.SIGKILL

    registry = open_registry(data, database_url)
    described = registry.describe("shared")
    there = {(v["version"], v["digest"]) for v in described["versions"]}
    assert {tuple(json.loads(line)[2:]) for line in lines} <= there
    assert described["active_version"] == len(there)
    for digest in registry.digests():
        registry.store.verify(digest)
    made = registry.publish("shared", craft(seed=99), base=base)
    assert made.version == len(there) + 1
    registry.close()
