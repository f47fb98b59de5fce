"""Content is kept whole, once, for good, or not at all: in a folder and in an object store."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from adapters.artifact import CONFIG_FILE, SERVED_FILES, WEIGHTS_FILE, artifact_digest
from adapters.errors import CorruptArtifact, InvalidAdapter, StoreError, StoreFull
from adapters.store import Store, open_store

from object_store_server import CREDENTIALS, Bucket, ObjectStoreServer, object_store_server

ROOT = Path(__file__).resolve().parents[2]
Craft = Callable[..., Path]

# Holds a lease until it is told otherwise.
HOLDER = """
import sys
from pathlib import Path
from adapters.store import open_store

data, url, digest = sys.argv[1:]
with open_store(Path(data), url or None).lease(digest):
    print("held", flush=True)
    sys.stdin.readline()
"""


@dataclass
class Ground:
    """One kind of store, and the same thing as it looks past the store."""

    data: Path
    bucket: Bucket | None

    @property
    def url(self) -> str | None:
        return self.bucket.url() if self.bucket else None

    @property
    def resolution(self) -> float:
        """Seconds after which a date is another one."""
        return 1.1 if self.bucket else 0.01

    def open(self) -> Store:
        return open_store(self.data, self.url)

    def files(self) -> list[str]:
        """What is kept, at the source of truth."""
        if self.bucket:
            return self.bucket.keys()
        root = self.data / "store"
        return [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]

    def change(self, digest: str, name: str, how: Callable[[bytes], bytes] | None) -> None:
        """Damage a stored file; None takes it away."""
        key = f"blobs/{digest.removeprefix('sha256:')}/{name}"
        if self.bucket:
            key = f"adapters/{key}"
            if how:
                self.bucket.write(key, how(self.bucket.read(key)))
            else:
                self.bucket.delete(key)
        else:
            path = self.data / "store" / key
            content = path.read_bytes()
            path.unlink()
            if how:
                path.write_bytes(how(content))


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStoreServer]:
    with object_store_server() as running:
        yield running


@pytest.fixture(params=["folder", "bucket"])
def ground(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Ground:
    if request.param == "folder":
        return Ground(tmp_path / "data", None)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return Ground(tmp_path / "data", request.getfixturevalue("server").create_bucket())


@pytest.fixture
def store(ground: Ground) -> Store:
    return ground.open()


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def test_what_is_put_is_there(store: Store, craft: Craft) -> None:
    folder = craft(fingerprint="sha256:" + "a" * 64)
    digest = store.put(folder)
    assert digest == artifact_digest(folder)
    assert store.holds(digest)
    store.verify(digest)
    with store.lease(digest) as leased:
        # The manifest is the registry's.
        assert sorted(path.name for path in leased.iterdir()) == sorted(SERVED_FILES)
        for name in SERVED_FILES:
            assert (leased / name).read_bytes() == (folder / name).read_bytes()


def test_equal_content_is_kept_once_and_is_young_again(
    ground: Ground, store: Store, craft: Craft
) -> None:
    digest = store.put(craft())
    [before] = store.stored()
    time.sleep(ground.resolution)
    assert store.put(craft()) == digest
    [after] = store.stored()
    assert (after.digest, after.bytes) == (before.digest, before.bytes)
    assert after.written > before.written
    assert len(ground.files()) == 2


def test_what_is_stored_can_be_listed(store: Store, craft: Craft) -> None:
    folders = [craft(seed=seed) for seed in range(3)]
    sizes = {
        store.put(folder): sum((folder / name).stat().st_size for name in SERVED_FILES)
        for folder in folders
    }
    found = list(store.stored())
    assert {blob.digest: blob.bytes for blob in found} == sizes
    for blob in found:
        assert abs(datetime.now(UTC) - blob.written) < timedelta(seconds=30)


def test_what_is_not_there(store: Store) -> None:
    digest = "sha256:" + "0" * 64
    assert not store.holds(digest)
    assert list(store.stored()) == []
    for act in (store.lease, store.verify):
        with pytest.raises(CorruptArtifact, match="missing: upload it again"):
            act(digest)
    assert store.remove(digest)  # nothing of it is left


def test_half_an_adapter_is_not_put(ground: Ground, store: Store, craft: Craft) -> None:
    folder = craft()
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(InvalidAdapter, match="is missing"):
        store.put(folder)
    assert ground.files() == []


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:../../etc", "md5:" + "0" * 64])
def test_a_digest_is_no_path(store: Store, digest: str) -> None:
    for act in (store.lease, store.holds, store.verify, store.remove):
        with pytest.raises(StoreError, match="no digest"):
            act(digest)


@pytest.mark.parametrize("name", SERVED_FILES)
@pytest.mark.parametrize(
    "damage",
    [flipped, lambda c: c[:-9], lambda c: b"", None],
    ids=["bit", "short", "empty", "gone"],
)
def test_damage_is_found_never_handed_out_and_mended_by_the_same_content(
    ground: Ground, craft: Craft, name: str, damage: Callable[[bytes], bytes] | None
) -> None:
    digest = ground.open().put(craft())
    ground.change(digest, name, damage)
    store = ground.open()
    for act in (store.verify, store.lease):
        with pytest.raises(CorruptArtifact, match="upload it again"):
            act(digest)
    assert store.holds(digest) is (damage is not None)
    assert [blob.digest for blob in store.stored()] == [digest]

    assert store.put(craft()) == digest
    store.verify(digest)
    with store.lease(digest) as leased:
        assert artifact_digest(leased) == digest
    assert len(ground.files()) == 2


def test_a_lease_hashes_again_only_what_has_changed(
    store: Store, craft: Craft, monkeypatch: pytest.MonkeyPatch
) -> None:
    import adapters.blobs

    hashed = []

    def counting(folder: Path) -> str:
        hashed.append(folder)
        return artifact_digest(folder)

    monkeypatch.setattr(adapters.blobs, "artifact_digest", counting)
    digest = store.put(craft())
    with store.lease(digest) as leased:
        hashed.clear()
        for _ in range(3):
            store.lease(digest).release()
        assert hashed == []
        os.utime(leased / CONFIG_FILE)
    store.lease(digest).release()
    assert hashed == [leased]


def test_what_is_leased_is_not_removed(store: Store, craft: Craft) -> None:
    digest = store.put(craft())
    first, second = store.lease(digest), store.lease(digest)
    first.release()
    first.release()  # once is enough; twice does not end the other's
    assert not store.remove(digest)
    assert artifact_digest(second.folder) == digest
    second.release()
    assert store.remove(digest)
    assert not store.holds(digest)
    assert not second.folder.exists()
    with pytest.raises(CorruptArtifact):
        store.lease(digest)


def test_a_forgotten_lease_is_none(store: Store, craft: Craft) -> None:
    digest = store.put(craft())
    lease = store.lease(digest)
    assert not store.remove(digest)
    del lease
    assert store.remove(digest)


@contextmanager
def another_holder(ground: Ground, digest: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDER, str(ground.data), ground.url or "", digest]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("end", ["released", "killed"])
def test_another_process_holds_a_lease(
    ground: Ground, store: Store, craft: Craft, end: str
) -> None:
    digest = store.put(craft())
    with another_holder(ground, digest) as process:
        assert not store.remove(digest)
        assert store.holds(digest)
        if end == "released":
            process.communicate("enough\n", timeout=30)
            assert process.returncode == 0
        else:
            process.kill()
            process.wait()
        assert store.remove(digest)


def test_many_threads_put_lease_and_remove_at_once(store: Store, craft: Craft) -> None:
    """Whatever somebody holds is sound for as long as he holds it."""
    folders = [craft(seed=seed) for seed in range(2)]
    digests = [store.put(folder) for folder in folders]

    def act(turn: int) -> bool:
        folder, digest = folders[turn % 2], digests[turn % 2]
        if turn % 3 == 0:
            return store.remove(digest)
        if turn % 3 == 1:
            return store.put(folder) == digest
        try:
            with store.lease(digest) as leased:
                time.sleep(0.001)
                return artifact_digest(leased) == digest
        except CorruptArtifact:  # it was removed, or is being put
            return False

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(act, range(120)))
    assert all(outcomes[1::3])  # every put
    assert any(outcomes[2::3])  # and some leases
    for folder, digest in zip(folders, digests, strict=True):
        store.put(folder)
        store.verify(digest)


def test_scratch_is_gone_afterwards(ground: Ground, store: Store) -> None:
    def fail() -> None:
        with store.scratch() as folder:
            (folder / "work").write_bytes(b"work")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [path for path in ground.data.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("size", [10, 200])
def test_a_full_disk_leaves_nothing(
    ground: Ground,
    store: Store,
    craft: Craft,
    file_limit: Callable[[int], Any],
    size: int,
) -> None:
    """Full in the first file or in the second; a bucket's lease fills the cache's disk."""
    folder = craft()
    digest = artifact_digest(folder)
    if ground.bucket:
        store.put(folder)
    fill = (lambda: store.lease(digest)) if ground.bucket else (lambda: store.put(folder))
    with file_limit(size), pytest.raises(StoreFull, match="free some"):
        fill()
    assert [path for path in ground.data.rglob("*") if path.is_file()] == []
    store.put(folder)
    store.lease(digest).release()
    store.verify(digest)


def test_a_disk_that_is_full_at_the_rename_leaves_nothing(
    ground: Ground, store: Store, craft: Craft, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Injected. A tmpfs (`test_small_disk.py`) never refuses a rename, which takes nothing of it;
    disks that do, when their folder needs another block, are not to be had without privileges.
    """
    folder = craft()
    digest = artifact_digest(folder)
    if ground.bucket:
        store.put(folder)

    def refuse(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", refuse)
        with pytest.raises(StoreFull, match="free some"):
            store.lease(digest) if ground.bucket else store.put(folder)
    assert [path for path in ground.data.rglob("*") if path.is_file()] == []
    store.put(folder)
    store.lease(digest).release()
    store.verify(digest)


def test_a_folder_that_cannot_be_made(ground: Ground) -> None:
    ground.data.write_text("a file is in the way")
    with pytest.raises(StoreError, match="cannot be written"):
        ground.open()
