"""A folder of blobs on this machine's disk: the local store, and the object store's cache.

Owns the layout, and the memory of what was found sound. Refuses to know where bytes come from and
who wants them.

    blobs/<sha256>/    the two served files; named so only after they were hashed on the disk
    drafts/<random>/   work in progress, and what is being deleted

Whoever uses a folder, under either name, holds a lease of it. So what nobody holds was left by one
who died, and no clock is asked how old it is.
"""

import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from adapters.artifact import SERVED_FILES, artifact_digest
from adapters.errors import CorruptArtifact, InvalidAdapter, StoreError
from adapters.files import disk_errors, sync_file, sync_folder
from adapters.leases import Lease, Turns, locked

FilesState = tuple[tuple[int, int, int], ...]  # of each file: inode, size, last write


@dataclass(frozen=True)
class StoredBlob:
    """What is kept under a digest, complete or not, and when it was last put there."""

    digest: str
    bytes: int
    written: datetime


class BlobFolder:
    """The blobs under `root`, for many threads and processes at once."""

    def __init__(self, root: Path) -> None:
        """Raises StoreError where the folder cannot be made."""
        self._blobs = root / "blobs"
        self._drafts = root / "drafts"
        self._sound: dict[str, FilesState] = {}
        self._turns = Turns()
        with disk_errors(root):
            for folder in (self._blobs, self._drafts):
                folder.mkdir(parents=True, exist_ok=True)
            self._clean()

    @property
    def disk(self) -> Path:
        """A folder on the blobs' disk, for temporary files that have no name."""
        return self._drafts

    def place(self, digest: str) -> Path:
        """Where the blob of this digest is or would be. Raises StoreError for what is none."""
        return self._blobs / hex_of(digest)

    def lease(self, digest: str) -> Lease:
        """A sound blob, held. Raises CorruptArtifact where there is none, StoreError.

        It is hashed unless this process has found it sound before and its files are the same.
        """
        lease = self._hold(digest)
        with ExitStack() as undo:
            undo.push(lease)
            if not self._known_sound(digest, lease.folder):
                with self._turns.of(digest):  # of many threads one hashes, the others wait
                    if not self._known_sound(digest, lease.folder):
                        self._check(digest, lease.folder)
            undo.pop_all()
        return lease

    def verify(self, digest: str) -> None:
        """Hash a blob again. Raises CorruptArtifact where it is not what was put, StoreError."""
        with self._hold(digest) as folder:
            self._check(digest, folder)

    def keep(self, draft: Path, digest: str) -> Lease:
        """Give a draft its name, or mend with its files the blob that has it; returns a lease.

        Raises CorruptArtifact where the draft's content is not the digest's, StoreFull, StoreError.
        """
        self._check(digest, draft)
        return self._name(draft, digest)

    def is_in_draft(self, folder: Path) -> bool:
        """Whether a folder lies in a draft of this folder of blobs."""
        return folder.is_relative_to(self._drafts)

    def take(self, folder: Path) -> str:
        """Keep the files of a folder in a draft as they are, hashed once and not copied.

        Nobody writes to them any more. Raises InvalidAdapter where one is missing, StoreFull,
        StoreError.
        """
        with self.draft() as draft:
            with disk_errors(folder):
                for name in SERVED_FILES:
                    with suppress(FileNotFoundError):  # hashing says so
                        os.link(folder / name, draft / name, follow_symlinks=False)
            state = _state(draft)  # first, as in `_check`
            digest = artifact_digest(draft)
            if state is not None:
                self._sound[digest] = state
            with disk_errors(folder):
                for name in SERVED_FILES:
                    sync_file(draft / name)
            self._name(draft, digest).release()
        return digest

    def _name(self, draft: Path, digest: str) -> Lease:
        """Give a draft that was hashed its name, or mend the blob that has it."""
        place = self.place(digest)
        with disk_errors(place):
            sync_folder(draft)
            while True:
                fresh = _renamed(draft, place)
                lease = locked(place, fcntl.LOCK_SH)
                if lease is not None:  # else it was removed in this moment
                    break
            if not fresh:
                _mend(place, draft)
            sync_folder(self._blobs)
            self.date(digest)
        return lease

    def date(self, digest: str) -> None:
        """Make a blob young, for whoever goes by the time it was written or used."""
        place, now = self.place(digest), time.time_ns()
        with disk_errors(place), suppress(FileNotFoundError):
            os.utime(place, ns=(now, now))  # finer than the time that the kernel would take

    def remove(self, digest: str) -> bool:
        """Take a blob away; False where somebody holds a lease of it. Raises StoreError."""
        place = self.place(digest)
        aside = self._drafts / secrets.token_hex(8)
        with disk_errors(place):
            try:
                lock = locked(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if lock is not None:
                with lock:
                    place.rename(aside)
                shutil.rmtree(aside, ignore_errors=True)
        self._sound.pop(digest, None)
        return True

    def stored(self) -> Iterator[StoredBlob]:
        """Every blob, in no order, damaged ones too. Raises StoreError."""
        with disk_errors(self._blobs):
            places = [place for place in self._blobs.iterdir() if _is_hex(place.name)]
        for place in places:
            with disk_errors(place):
                try:
                    found = _stored(place)
                except FileNotFoundError:  # it was removed in this moment
                    continue
            yield found

    @contextmanager
    def draft(self) -> Iterator[Path]:
        """A folder on this disk for work in progress, gone afterwards. Raises StoreError.

        Where the process dies first, the next one that opens the blobs removes it.
        """
        lease = self._new_draft()
        try:
            yield lease.folder
        finally:
            shutil.rmtree(lease.folder, ignore_errors=True)
            lease.release()

    def _hold(self, digest: str) -> Lease:
        place = self.place(digest)
        with disk_errors(place):
            lease = locked(place, fcntl.LOCK_SH)
        if lease is None:
            raise CorruptArtifact(f"The stored adapter {digest} is missing: upload it again.")
        return lease

    def _known_sound(self, digest: str, folder: Path) -> bool:
        return digest in self._sound and self._sound[digest] == _state(folder)

    def _check(self, digest: str, folder: Path) -> None:
        """Hash what is in `folder`, and remember the files if they are what they should be."""
        state = _state(folder)  # first: what changes during the hashing will not be recognised
        self._sound.pop(digest, None)
        check_content(folder, digest)
        if state is not None:
            self._sound[digest] = state

    def _new_draft(self) -> Lease:
        with disk_errors(self._drafts):
            while True:
                folder = self._drafts / secrets.token_hex(8)
                folder.mkdir()
                lease = locked(folder, fcntl.LOCK_SH)
                if lease is not None:  # else it was cleaned away before it could be locked
                    return lease

    def _clean(self) -> None:
        """Remove what processes that died have left: drafts that nobody holds."""
        for draft in self._drafts.iterdir():
            with suppress(OSError):  # it is held, or not ours to remove
                lock = locked(draft, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if lock is not None:
                    with lock:
                        shutil.rmtree(draft, ignore_errors=True)


def check_content(folder: Path, digest: str) -> None:
    """Hash the files in `folder`. Raises CorruptArtifact where they are not the digest's."""
    try:
        found = artifact_digest(folder)
    except (InvalidAdapter, OSError):  # a file is gone, is no file, or cannot be read back
        found = None
    if found != digest:
        raise CorruptArtifact(f"The stored adapter {digest} is damaged: upload it again.")


def hex_of(digest: str) -> str:
    """The 64 hexadecimal digits of `sha256:…`. Raises StoreError for anything else."""
    algorithm, _, value = digest.partition(":")
    if algorithm != "sha256" or not _is_hex(value):
        raise StoreError(f"{digest!r} is no digest.")
    return value


def _is_hex(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def _renamed(draft: Path, place: Path) -> bool:
    """Give `draft` its name; False where the name is taken."""
    try:
        draft.rename(place)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _mend(place: Path, draft: Path) -> None:
    """Put the draft's files in the place of a blob's, under those who hold it.

    Each is exchanged at once and is what the digest says, so there is no moment with less.
    """
    for name in SERVED_FILES:
        (draft / name).replace(place / name)
    sync_folder(place)


def _state(folder: Path) -> FilesState | None:
    try:
        found = [(folder / name).lstat() for name in SERVED_FILES]
    except OSError:
        return None
    return tuple((status.st_ino, status.st_size, status.st_mtime_ns) for status in found)


def _stored(place: Path) -> StoredBlob:
    if place.stat().st_mtime > time.time():  # by a clock that was wrong: it would stay young
        os.utime(place)
    written = datetime.fromtimestamp(place.stat().st_mtime, UTC)
    with os.scandir(place) as files:
        size = sum(file.stat().st_size for file in files)
    return StoredBlob(f"sha256:{place.name}", size, written)
