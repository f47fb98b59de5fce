"""Where adapters' bytes live: content under its digest, written once and never changed.

Owns what a store promises, the store in a local folder, and the choice between that and an object
store. Refuses to know versions and names. Whatever is handed out was hashed before, and stays
where it is for as long as it is leased.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from adapters.artifact import SERVED_FILES, artifact_digest
from adapters.blobs import BlobFolder, StoredBlob
from adapters.errors import CorruptArtifact
from adapters.files import disk_errors, write_durably
from adapters.leases import Lease

__all__ = ["DEFAULT_CACHE_BYTES", "Lease", "LocalStore", "Store", "StoredBlob", "open_store"]

# About 250 rank-16 adapters of an 8 B model.
DEFAULT_CACHE_BYTES = 20 * 2**30
_CHUNK = 2**20


class Store(Protocol):
    """What both kinds of store do. Every method raises StoreError where it cannot be done."""

    @property
    def disk(self) -> Path:
        """A folder on the store's own disk, for temporary files that have no name."""

    def put(self, folder: Path) -> str:
        """Keep the served files of `folder`; returns their digest. Equal content is kept once.

        Content that is there already becomes young again, and whole where it was damaged. Raises
        InvalidAdapter where a file is missing, and StoreFull, with nothing left behind. Files in
        this store's own scratch are not to be changed any more: they may be kept as they are.
        """

    def holds(self, digest: str) -> bool:
        """Whether the content is there; it is not hashed."""

    def lease(self, digest: str) -> Lease:
        """A local folder with the content, hashed, that stays until the lease is released.

        Raises CorruptArtifact where the content is missing or damaged.
        """

    def verify(self, digest: str) -> None:
        """Hash the stored bytes again. Raises CorruptArtifact where they are not what was put."""

    def remove(self, digest: str) -> bool:
        """Take the content away; False where somebody on this machine holds a lease of it."""

    def stored(self) -> Iterator[StoredBlob]:
        """All that is kept, in no order; also what is damaged or incomplete."""

    def scratch(self) -> AbstractContextManager[Path]:
        """A folder on the store's own disk for work before `put`; it is gone afterwards."""


class LocalStore:
    """A store in the folder `root`."""

    def __init__(self, root: Path) -> None:
        """Raises StoreError where the folder cannot be made."""
        self._blobs = BlobFolder(root)

    @property
    def disk(self) -> Path:
        return self._blobs.disk

    def put(self, folder: Path) -> str:
        if self._blobs.is_in_draft(folder):
            return self._blobs.take(folder)
        digest = artifact_digest(folder)
        self._blobs.date(digest)  # before the hashing, which takes its time
        if self._is_sound(digest):
            return digest
        with self._blobs.draft() as draft:
            for name in SERVED_FILES:
                with disk_errors(folder), (folder / name).open("rb") as source:
                    write_durably(draft / name, iter(lambda: source.read(_CHUNK), b""))
            self._blobs.keep(draft, digest).release()
        return digest

    def holds(self, digest: str) -> bool:
        place = self._blobs.place(digest)
        return all((place / name).is_file() for name in SERVED_FILES)

    def lease(self, digest: str) -> Lease:
        return self._blobs.lease(digest)

    def verify(self, digest: str) -> None:
        self._blobs.verify(digest)

    def remove(self, digest: str) -> bool:
        return self._blobs.remove(digest)

    def stored(self) -> Iterator[StoredBlob]:
        return self._blobs.stored()

    def scratch(self) -> AbstractContextManager[Path]:
        return self._blobs.draft()

    def _is_sound(self, digest: str) -> bool:
        try:
            self._blobs.verify(digest)
        except CorruptArtifact:
            return False
        return True


def open_store(
    data_dir: Path, url: str | None = None, *, cache_bytes: int = DEFAULT_CACHE_BYTES
) -> Store:
    """The store in `data_dir`, or the object store at `url` with its cache there.

    Raises StoreError where the folder cannot be made or the URL is wrong; an object store that is
    away is noticed by its first use.
    """
    if url is None:
        return LocalStore(data_dir / "store")
    # Only here: the local store needs no client of object stores.
    from adapters.object_store import open_object_store

    # Beside a local store's blobs and not among them: a cache forgets.
    return open_object_store(url, data_dir / "store" / "cache", cache_bytes=cache_bytes)
