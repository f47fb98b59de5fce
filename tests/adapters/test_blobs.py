"""The folder under both kinds of store: locks, drafts, dates, and processes that die in it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from adapters.artifact import CONFIG_FILE, WEIGHTS_FILE, artifact_digest
from adapters.blobs import BlobFolder
from adapters.errors import CorruptArtifact, InvalidAdapter
from adapters.store import LocalStore

ROOT = Path(__file__).resolve().parents[2]
Craft = Callable[..., Path]

# Two children are forked while there is a lease and live on: one forgets its copy of it, which
# does not end ours, and one keeps it, which does not prolong ours.
FORKER = """
import gc, os, signal, sys
from pathlib import Path
from adapters.store import LocalStore

root, digest = sys.argv[1:]
store = LocalStore(Path(root))
lease = store.lease(digest)
reading, writing = os.pipe()
children = []
for forgets in (True, False):
    child = os.fork()
    if child == 0:
        if forgets:
            lease = None
            gc.collect()
        os.write(writing, b"!")
        signal.pause()
    children.append(child)
    os.read(reading, 1)
removed_under_lease = store.remove(digest)
lease.release()
removed_after = store.remove(digest)
for child in children:
    os.kill(child, signal.SIGKILL)
print(removed_under_lease, removed_after)
"""

# Puts (content that is absent, or damaged) or removes it, killed at each step in turn, and
# looks each time at what a process finds that opens the store afterwards.
KILLED = """
import sys
from pathlib import Path
from adapters.blobs import check_content
from adapters.store import LocalStore
from killing import at_every_step

root, folder, case = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
digest = LocalStore(root).put(folder)
weights = root / "blobs" / digest.removeprefix("sha256:") / "adapter_model.safetensors"

def prepare():
    if case == "absent":
        LocalStore(root).remove(digest)
    elif case == "damaged":
        weights.write_bytes(b"damaged")
    else:
        LocalStore(root).put(folder)

def act(step):
    store = LocalStore(root)
    if case == "removed":
        assert store.remove(digest)
    else:
        store.put(folder)

def check(step):
    store = LocalStore(root)
    assert list((root / "drafts").iterdir()) == [], step
    if not store.holds(digest):
        seen.add("nothing")
        assert list((root / "blobs").iterdir()) == [], step
    elif weights.read_bytes() == b"damaged":
        seen.add("damaged")
    else:
        seen.add("whole")
        check_content(weights.parent, digest)
    if step % 8 == 0:
        store.put(folder)
        store.lease(digest).release()
    prepare()

seen = set()
prepare()
steps = at_every_step(act, check, {"store.py", "blobs.py", "leases.py", "files.py"})
assert steps > 50, steps
print(*sorted(seen))
"""


def run(script: str, *arguments: object) -> str:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'shared'}"}
    command = [sys.executable, "-W", "error", "-c", script, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def test_a_draft_gets_no_name_that_its_content_has_not(root: Path, craft: Craft) -> None:
    blobs = BlobFolder(root)
    digest = artifact_digest(craft())
    with blobs.draft() as draft:
        for path in craft(seed=1).iterdir():
            path.rename(draft / path.name)
        with pytest.raises(CorruptArtifact):
            blobs.keep(draft, digest)
    assert list(blobs.stored()) == []


def test_mending_happens_under_the_holder_of_a_lease(root: Path, craft: Craft) -> None:
    """His folder never goes away, and what he has opened stays what it was."""
    store = LocalStore(root)
    digest = store.put(craft())
    with store.lease(digest) as leased, (leased / CONFIG_FILE).open("rb") as opened:
        (leased / WEIGHTS_FILE).write_bytes(b"damaged")
        store.put(craft())
        assert artifact_digest(leased) == digest
        assert opened.read() == (leased / CONFIG_FILE).read_bytes()
        assert not store.remove(digest)


def test_what_lies_in_its_scratch_is_kept_as_it_is_and_hashed(root: Path, craft: Craft) -> None:
    store, seen = LocalStore(root), {}
    for case in ("absent", "there", "damaged"):
        with store.scratch() as scratch:
            served = scratch / "served"
            shutil.copytree(craft(), served)
            inode = (served / WEIGHTS_FILE).stat().st_ino
            digest = seen[case] = store.put(served)
        with store.lease(digest) as leased:
            assert (leased / WEIGHTS_FILE).stat().st_ino == inode  # not copied
            assert artifact_digest(leased) == digest
            store.verify(digest)
            (leased / WEIGHTS_FILE).write_bytes(b"damaged" if case == "there" else b"more of it")
        with pytest.raises(CorruptArtifact):  # the memory of what was hashed is of other files
            store.lease(digest)
    assert len(set(seen.values())) == 1
    with store.scratch() as scratch, pytest.raises(InvalidAdapter, match=r"\.json is missing"):
        store.put(scratch)
    assert list((root / "drafts").iterdir()) == []


def test_a_forked_child_has_no_part_in_a_lease(root: Path, craft: Craft) -> None:
    """As when the engine's process is started by a server that holds some."""
    digest = LocalStore(root).put(craft())
    assert run(FORKER, root, digest) == "False True"


def test_a_folder_renamed_between_opening_and_locking_is_not_leased(
    root: Path, craft: Craft, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race is forced: the remover wins exactly there, and the same content comes back."""
    import fcntl

    store, other = LocalStore(root), LocalStore(root)
    digest = store.put(craft())
    real, races = fcntl.flock, iter([True])

    def losing(descriptor: int, kind: int) -> None:
        if kind == fcntl.LOCK_SH and next(races, False):
            assert other.remove(digest)
            other.put(craft())
        real(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", losing)
    with store.lease(digest) as leased:
        assert artifact_digest(leased) == digest
        assert not other.remove(digest)


def test_content_removed_while_the_same_is_put_is_there_afterwards(
    root: Path, craft: Craft, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race is forced: it is found damaged, its name is taken, and in this moment free again."""
    store, other = LocalStore(root), LocalStore(root)
    digest = store.put(craft())
    (root / "blobs" / digest.removeprefix("sha256:") / WEIGHTS_FILE).write_bytes(b"damaged")
    real, races = Path.rename, iter([True])

    def losing(path: Path, target: Path) -> Path:
        try:
            return real(path, target)
        except OSError:
            if next(races, False):
                assert other.remove(digest)
            raise

    monkeypatch.setattr(Path, "rename", losing)
    assert store.put(craft()) == digest
    assert next(races, None) is None
    store.verify(digest)


@pytest.mark.parametrize("years", [-40, 0, 40], ids=["old", "now", "future"])
def test_drafts_live_as_long_as_their_owner_whatever_the_clock_said(root: Path, years: int) -> None:
    """A clock that jumps neither takes a draft away nor keeps one for ever."""
    date = time.time() + years * 365 * 86_400
    with BlobFolder(root).draft() as held:
        left = held.parent / "left-by-one-that-died"
        left.mkdir()
        (left / "half").write_bytes(b"half")
        for draft in (held, left):
            os.utime(draft, (date, date))
        BlobFolder(root)
        assert list(held.parent.iterdir()) == [held]
    assert list(held.parent.iterdir()) == []


def test_a_blob_dated_in_the_future_is_dated_now(root: Path, craft: Craft) -> None:
    """Else a clock that was wrong once would keep it from the garbage collection for ever."""
    store = LocalStore(root)
    with store.lease(store.put(craft())) as leased:
        future = time.time() + 10 * 365 * 86_400
        os.utime(leased, (future, future))
    [blob] = store.stored()
    assert blob.written <= datetime.now(UTC)
    assert [again.written for again in store.stored()] == [blob.written]


@pytest.mark.parametrize(
    ("case", "found"),
    [("absent", "nothing whole"), ("damaged", "damaged whole"), ("removed", "nothing whole")],
)
def test_a_process_that_is_killed_at_any_step_leaves_all_or_nothing(
    root: Path, craft: Craft, case: str, found: str
) -> None:
    """And no draft; and the same content can be put again."""
    assert run(KILLED, root, craft(), case) == found


def test_a_killed_process_leaves_no_draft_to_those_who_open_later(root: Path) -> None:
    script = (
        "import os, sys, signal; from pathlib import Path; from adapters.blobs import BlobFolder\n"
        "with BlobFolder(Path(sys.argv[1])).draft() as draft:\n"
        "    (draft / 'half').write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(root)], cwd=ROOT, timeout=30)
    assert done.returncode == -signal.SIGKILL
    assert len(list((root / "drafts").iterdir())) == 1
    BlobFolder(root)
    assert list((root / "drafts").iterdir()) == []
