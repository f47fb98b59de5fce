"""A disk that is really full, a little later each time, while an adapter is published.

Where a limit on file sizes (`file_limit`) stops one file, a full disk stops all of them at once:
blob, database and its log share it. Each page of room more stops the work at a later write.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from small_disk import run_on_small_disk, why_not

from adapters.base import BaseModelInfo

# Publishes and activates with 0, 1, 2 … pages of room, until one has enough; and each once more
# with all the room there is.
PUBLISHER = """
import json, os, sys
from pathlib import Path
from adapters.base import BaseModelInfo
from adapters.errors import AdapterNotFound, StoreFull
from adapters.registry import open_registry

disk, base, *folders = sys.argv[1:]
disk, base = Path(disk), BaseModelInfo.model_validate_json(base)
registry = open_registry(disk / "data")
filler = disk / "filler"

def leave(pages):
    filler.unlink(missing_ok=True)
    free = os.statvfs(disk).f_bavail
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, (free - pages) * 4096)

def publish(n):
    return registry.publish(
        "shared", Path(folders[n]), base=base, activate=True, idempotency_key=str(n)
    ).version

def active():
    try:
        return registry.describe("shared")["active_version"]
    except AdapterNotFound:
        return None

told, done = [], 0
for n in range(len(folders)):
    leave(n)
    before = active()
    try:
        assert publish(n) == done + 1
        through = True
    except StoreFull as error:
        told.append(str(error))
        through = False
        assert active() == before
        assert list((disk / "data" / "store" / "drafts").iterdir()) == []
    filler.unlink()
    assert publish(n) == done + 1 == active(), (n, done)
    done += 1
    if through:
        break
described = registry.describe("shared")["versions"]
assert sorted(row["version"] for row in described) == list(range(1, done + 1))
for row in described:
    registry.store.verify(row["digest"])
print(json.dumps({"refused": told, "through": through}))
"""


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Where the disk is going to be."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if reason := why_not(folder):
        pytest.skip(f"no disk can be mounted here without privileges: {reason}")
    return folder


def test_an_upload_with_ever_more_room(
    disk: Path, craft: Callable[..., Path], base: BaseModelInfo
) -> None:
    folders = [str(craft(seed=seed)) for seed in range(40)]
    told = run_on_small_disk(PUBLISHER, disk, 4 * 2**20, base.model_dump_json(), *folders)
    seen = json.loads(told)
    assert seen["through"]
    assert all("free some" in sentence for sentence in seen["refused"])
    for full in ("adapter_config.json", "adapter_model.safetensors", "the registry's database"):
        assert any(full in sentence for sentence in seen["refused"])
