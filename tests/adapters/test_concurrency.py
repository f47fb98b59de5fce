"""Many at once, in threads and in processes, some of them killed: nothing is lost or torn."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapters.base import BaseModelInfo
from adapters.errors import VersionConflict
from adapters.registry import Registry, open_registry

ROOT = Path(__file__).resolve().parents[2]

# Publishes the folders it is given, one after the other, and says each version that was made.
PUBLISHER = """
import sys
from pathlib import Path
from adapters.base import BaseModelInfo
from adapters.registry import open_registry

data, base, *folders = sys.argv[1:]
registry = open_registry(Path(data))
print("ready", flush=True)
for folder in folders:
    made = registry.publish(
        "shared", Path(folder), base=BaseModelInfo.model_validate_json(base), activate=True
    )
    print(made.engine_id, made.version, made.digest, flush=True)
"""


def publisher(data: Path, base: BaseModelInfo, folders: list[Path]) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", PUBLISHER, str(data), base.model_dump_json()]
    return subprocess.Popen(
        [*command, *map(str, folders)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


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
    from adapters.db import writing

    registry.publish("shared", craft(), base=base, activate=True)
    with writing(registry._engine) as session:
        session.connection().exec_driver_sql("update adapters set public = 1")
        began = time.perf_counter()
        assert registry.resolve("shared", is_admin=True).version == 1
        assert time.perf_counter() - began < 1


def test_processes_open_and_publish_at_once(
    craft: Callable[..., Path], base: BaseModelInfo, tmp_path: Path
) -> None:
    """No database yet: both bring it up to date, and then both publish the same adapter."""
    data = tmp_path / "data"
    folders = [craft(seed=seed) for seed in range(10)]
    running = [publisher(data, base, folders[:5]), publisher(data, base, folders[5:])]
    lines = [process.communicate(timeout=60)[0].splitlines()[1:] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    made = [tuple(line.split()) for line in lines[0] + lines[1]]
    assert len({engine_id for engine_id, _, _ in made}) == 10
    assert sorted(int(version) for _, version, _ in made) == list(range(1, 11))
    registry = open_registry(data)
    described = registry.describe("shared")
    assert {(str(v["version"]), v["digest"]) for v in described["versions"]} == {
        (version, digest) for _, version, digest in made
    }
    assert described["active_version"] == 10
    registry.close()


@pytest.mark.parametrize("milliseconds", [3, 10, 25])
def test_a_killed_publisher_leaves_nothing_half_done(
    craft: Callable[..., Path], base: BaseModelInfo, tmp_path: Path, milliseconds: int
) -> None:
    data = tmp_path / "data"
    process = publisher(data, base, [craft(seed=seed) for seed in range(40)])
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    acknowledged = [process.stdout.readline().split()]
    time.sleep(milliseconds / 1000)
    process.kill()
    acknowledged += [line.split() for line in process.stdout if line.count(" ") == 2]
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL

    registry = open_registry(data)
    described = registry.describe("shared")
    there = {(str(v["version"]), v["digest"]) for v in described["versions"]}
    assert {(version, digest) for _, version, digest in acknowledged} <= there
    assert described["active_version"] == len(there)
    for digest in registry.digests():
        registry.store.verify(digest)
    made = registry.publish("shared", craft(seed=99), base=base)
    assert made.version == len(there) + 1
    registry.close()
