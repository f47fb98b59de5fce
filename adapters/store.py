"""Where adapters' bytes live: a folder per content, written once and never changed.

Owns the local, content-addressed store: `put` copies a normal form in, `path` hands out the
immutable folder. Refuses to know versions and names. A folder under `blobs/` is complete: it
is written under a temporary name, made durable and renamed into place.
"""

import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adapters.artifact import SERVED_FILES, artifact_digest
from adapters.errors import CorruptArtifact, InvalidAdapter, StoreError
from adapters.files import as_store_error, sync_folder, write_durably

ABANDONED_SECONDS = 3600
_CHUNK = 2**20


class LocalStore:
    """A store in the folder `root`."""

    def __init__(self, root: Path) -> None:
        self._blobs = root / "blobs"
        self._drafts = root / "drafts"
        for folder in (self._blobs, self._drafts):
            folder.mkdir(parents=True, exist_ok=True)
        self._clean()

    def put(self, folder: Path) -> str:
        """Keep the served files of `folder`; returns their digest. Equal content is kept once.

        Raises StoreFull and StoreError, with nothing left behind.
        """
        digest = artifact_digest(folder)
        place = self._place(digest)
        if self._is_sound(digest):
            return digest
        draft = self._draft()
        try:
            for name in SERVED_FILES:
                with (folder / name).open("rb") as source:
                    write_durably(draft / name, iter(lambda: source.read(_CHUNK), b""))
            sync_folder(draft)
            self._set_aside(place)
            self._rename(draft, place)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return digest

    def path(self, digest: str) -> Path:
        """The immutable folder of `digest`. Raises CorruptArtifact where it is gone."""
        place = self._place(digest)
        if not place.is_dir():
            raise CorruptArtifact(f"The stored adapter {digest} is missing: upload it again.")
        return place

    def verify(self, digest: str) -> None:
        """Hash the stored bytes again. Raises CorruptArtifact where they are not what they were."""
        place = self.path(digest)
        try:
            found = artifact_digest(place)
        except InvalidAdapter:  # a file is gone, or is no longer a file
            found = None
        if found != digest:
            raise CorruptArtifact(f"The stored adapter {digest} is damaged: upload it again.")

    def _place(self, digest: str) -> Path:
        algorithm, _, value = digest.partition(":")
        if algorithm != "sha256" or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
            raise StoreError(f"{digest!r} is no digest.")
        return self._blobs / value

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder on the store's own disk for work before `put`; it is gone afterwards."""
        folder = self._draft()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _is_sound(self, digest: str) -> bool:
        try:
            self.verify(digest)
        except CorruptArtifact:
            return False
        return True

    def _set_aside(self, place: Path) -> None:
        """Move damaged content out of the way of the same content, uploaded again."""
        if place.is_dir():
            with suppress(FileNotFoundError):  # another process mends it at the same time
                place.rename(self._drafts / secrets.token_hex(8))

    def _draft(self) -> Path:
        try:
            draft = self._drafts / secrets.token_hex(8)
            draft.mkdir()
            return draft
        except OSError as error:
            raise as_store_error(error, self._drafts) from error

    def _rename(self, draft: Path, place: Path) -> None:
        try:
            draft.rename(place)
        except OSError as error:
            if not place.is_dir():  # else another process was first with the same content
                raise as_store_error(error, place) from error
        sync_folder(self._blobs)

    def _clean(self) -> None:
        """Remove drafts of processes that died; young ones may still be written."""
        for draft in self._drafts.iterdir():
            with suppress(FileNotFoundError):  # its owner has finished in this moment
                if time.time() - draft.stat().st_mtime > ABANDONED_SECONDS:
                    shutil.rmtree(draft, ignore_errors=True)
