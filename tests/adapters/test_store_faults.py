"""The object store away, silent, slow, or lying, and a process killed while it fetches.

The faults are real ones: a server that is killed or stopped, and a proxy that delays, cuts and
alters what passes. Whatever happens, an error comes within the time that was set, and nothing that
is not whole is ever handed out or kept.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adapters.artifact import artifact_digest
from adapters.errors import CorruptArtifact, StoreError
from adapters.store import Store, open_store

from faulty_proxy import FaultyProxy, faulty_proxy
from object_store_server import CREDENTIALS, Bucket, ObjectStoreServer, object_store_server

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = os.urandom(400_000)
Craft = Callable[..., Path]

# Leases what is not in the cache, killed at each step in turn, and looks at the cache afterwards.
# Only the forks speak to the object store: its client's threads do not survive a fork.
KILLED_FETCHER = """
import shutil, sys
from pathlib import Path
import adapters.object_store  # before the forks, not in each
from adapters.blobs import BlobFolder, check_content
from adapters.store import open_store
from killing import at_every_step

data, url, digest = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
cache = data / "store" / "cache"

def check(step):
    found = BlobFolder(cache)
    assert list((cache / "drafts").iterdir()) == [], step
    blobs = list((cache / "blobs").iterdir())
    seen.add(len(blobs))
    for blob in blobs:
        check_content(blob, digest)
        assert found.remove(digest)

seen = set()
steps = at_every_step(
    lambda step: open_store(data, url).lease(digest).release(),
    check,
    {"object_store.py", "cache.py", "blobs.py", "leases.py", "files.py"},
    stride=4,
)
print(steps, sorted(seen))
"""

# Puts into the bucket, killed at each step in turn.
KILLED_PUTTER = """
import sys
from pathlib import Path
import adapters.object_store  # before the forks, not in each
from adapters.store import open_store
from killing import at_every_step
from object_store_server import Bucket

data, folder, url, port, name = sys.argv[1:]
bucket = Bucket(int(port), name)

def check(step):
    keys = sorted(key.rpartition("/")[2] for key in bucket.keys())
    seen.add(tuple(keys))
    for key in bucket.keys():
        assert bucket.read(key) == (Path(folder) / key.rpartition("/")[2]).read_bytes()
        bucket.delete(key)

seen = set()
at_every_step(
    lambda step: open_store(Path(data), url).put(Path(folder)), check, {"object_store.py"}
)
print(sorted(map(len, seen)), "|".join(sorted(keys[0] for keys in seen if len(keys) == 1)))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStoreServer]:
    with object_store_server() as running:
        yield running


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(server: ObjectStoreServer) -> Bucket:
    return server.create_bucket()


@pytest.fixture
def proxy(server: ObjectStoreServer) -> Iterator[FaultyProxy]:
    with faulty_proxy(server.port) as running:
        yield running


def files(data: Path) -> list[Path]:
    return [path for path in data.rglob("*") if path.is_file()]


@contextmanager
def within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def expect_away(store: Store, folder: Path, digest: str, *, seconds: float) -> None:
    """Every call ends in time, with one sentence for the caller."""
    for act in (
        lambda: store.lease(digest),
        lambda: store.holds(digest),
        lambda: store.verify(digest),
        lambda: store.put(folder),
        lambda: list(store.stored()),
    ):
        with within(seconds), pytest.raises(StoreError, match="does not answer") as caught:
            act()
        assert not isinstance(caught.value, CorruptArtifact)
        assert "\n" not in str(caught.value)


def test_a_server_that_is_killed_and_comes_back(craft: Craft, tmp_path: Path) -> None:
    folder, warm = craft(), craft(seed=1)
    digest = artifact_digest(folder)
    with object_store_server() as server:
        bucket = server.create_bucket()
        store = open_store(tmp_path, bucket.url())
        store.put(folder)
        warm_digest = store.put(warm)
        store.lease(warm_digest).release()
    with store.lease(warm_digest) as leased:  # it is here, so nobody need be asked
        expect_away(store, folder, digest, seconds=8)
        assert artifact_digest(leased) == warm_digest
    with object_store_server(server.port) as again:
        again.create_bucket(bucket.name)
        store.put(folder)
        store.lease(digest).release()


def test_a_server_that_says_nothing(
    server: ObjectStoreServer, bucket: Bucket, craft: Craft, tmp_path: Path
) -> None:
    """The call takes one time-out and the tries that begin in the first five seconds."""
    folder, patient = craft(), open_store(tmp_path, bucket.url())
    store = open_store(tmp_path, bucket.url(read_timeout=0.2))
    digest = patient.put(folder)
    with server.suspended():
        expect_away(store, folder, digest, seconds=8)
        with pytest.raises(StoreError, match="does not answer"):
            store.remove(digest)  # it may be done all the same, later
    patient.put(folder)
    patient.lease(digest).release()


def test_a_server_that_trickles(
    bucket: Bucket, proxy: FaultyProxy, craft: Craft, tmp_path: Path
) -> None:
    """No piece is late, but all of them together are."""
    patient = open_store(tmp_path, bucket.url())
    digest = patient.put(craft(weights=WEIGHTS))
    store = open_store(tmp_path, bucket.url(proxy.port, timeout=0.5))
    proxy.delay = 0.02
    with within(8), pytest.raises(StoreError, match="does not answer"):
        store.lease(digest)
    assert files(tmp_path / "store") == []
    patient.lease(digest).release()


def test_a_slow_server_that_is_fast_enough(
    bucket: Bucket, proxy: FaultyProxy, craft: Craft, tmp_path: Path
) -> None:
    """Longer than the limit on silence, but never silent."""
    digest = open_store(tmp_path, bucket.url()).put(craft(weights=WEIGHTS))
    store = open_store(tmp_path, bucket.url(proxy.port, read_timeout=1))
    proxy.delay = 0.015
    began = time.monotonic()
    store.lease(digest).release()
    assert time.monotonic() - began > 1


@pytest.mark.parametrize("passing", [0, 300, 5_000])
def test_answers_that_break_off(
    bucket: Bucket, proxy: FaultyProxy, craft: Craft, tmp_path: Path, passing: int
) -> None:
    """Before anything was said, in an answer's head, in its body; and at every new try."""
    folder = craft(weights=WEIGHTS)
    store = open_store(tmp_path, bucket.url(proxy.port))
    digest = store.put(folder)
    proxy.cut_after = passing
    for act in (store.lease, store.verify):
        with within(8), pytest.raises(StoreError, match="does not answer"):
            act(digest)
        assert files(tmp_path / "store") == []
    if passing == 0:
        expect_away(store, folder, digest, seconds=8)
    proxy.cut_after = None
    store.lease(digest).release()


def test_a_broken_download_is_taken_up_where_it_broke(
    bucket: Bucket, proxy: FaultyProxy, craft: Craft, tmp_path: Path
) -> None:
    store = open_store(tmp_path, bucket.url(proxy.port))
    digest = store.put(craft(weights=WEIGHTS))
    before, proxy.cut_after = proxy.answered, len(WEIGHTS) // 2
    with store.lease(digest) as leased:
        assert artifact_digest(leased) == digest
    assert proxy.answered - before < 1.2 * len(WEIGHTS)


def test_altered_answers_are_never_kept(
    bucket: Bucket, proxy: FaultyProxy, craft: Craft, tmp_path: Path
) -> None:
    store = open_store(tmp_path, bucket.url(proxy.port))
    digest = store.put(craft(weights=WEIGHTS))
    middle = WEIGHTS[200_000:200_004]
    proxy.change = lambda piece: piece.replace(middle, bytes(4))
    for act in (store.lease, store.verify):
        with pytest.raises(CorruptArtifact, match="damaged"):
            act(digest)
    assert files(tmp_path / "store") == []
    proxy.change = lambda piece: piece
    store.lease(digest).release()
    store.verify(digest)


def test_refusals_say_what_to_check(
    bucket: Bucket,
    proxy: FaultyProxy,
    craft: Craft,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proxy.change = lambda piece: piece.replace(b"HTTP/1.1 200 OK", b"HTTP/1.1 403 Forbidden")
    with pytest.raises(StoreError, match="refuses: check AWS_ACCESS_KEY_ID"):
        open_store(tmp_path, bucket.url(proxy.port)).put(craft())
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    with within(8), pytest.raises(StoreError, match="No credentials for the object store"):
        open_store(tmp_path, bucket.url()).put(craft())


def run(script: str, *arguments: object) -> str:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'shared'}"}
    command = [sys.executable, "-W", "error", "-c", script, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_fetch_that_is_killed_at_any_step(bucket: Bucket, craft: Craft, tmp_path: Path) -> None:
    digest = open_store(tmp_path / "first", bucket.url()).put(craft())
    steps, seen = run(KILLED_FETCHER, tmp_path / "data", bucket.url(), digest).split(" ", 1)
    assert int(steps) > 50
    assert seen == "[0, 1]"


def test_a_put_that_is_killed_at_any_step(
    server: ObjectStoreServer, bucket: Bucket, craft: Craft, tmp_path: Path
) -> None:
    """There is nothing, the config alone, or both; and each object is whole."""
    seen = run(KILLED_PUTTER, tmp_path, craft(), bucket.url(), server.port, bucket.name)
    assert seen == "[0, 1, 2] adapter_config.json"
