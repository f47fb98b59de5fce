"""Blobs that may be forgotten: what an object store has on this machine's disk.

Owns the bound in bytes and the choice of what goes, the least recently used first. Refuses the
network. What is leased is never forgotten: where that alone is more than the bound, the bound
gives way.
"""

import logging
import os
import threading
from contextlib import AbstractContextManager
from pathlib import Path

from adapters.blobs import BlobFolder
from adapters.errors import CorruptArtifact
from adapters.leases import Lease

logger = logging.getLogger(__name__)


class BlobCache:
    """At most `max_bytes` of blobs under `root`, which other processes may use, too."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        """Raises StoreError where the folder cannot be made."""
        self._blobs = BlobFolder(root)
        # Looking through a large cache takes longer than a fetch. So a sixteenth of the bound is
        # kept free, and the cache is looked through when so much may have come.
        self._reserve = max_bytes // 16
        self._kept = max_bytes - self._reserve
        self._come = max_bytes  # unknown, at first: earlier processes have left something
        self._counting = threading.Lock()

    def lease(self, digest: str) -> Lease | None:
        """A sound blob, held and now the most recently used; None where there is none."""
        try:
            lease = self._blobs.lease(digest)
        except CorruptArtifact:
            return None
        self._blobs.date(digest)
        return lease

    def keep(self, draft: Path, digest: str) -> Lease:
        """Keep a draft and forget others for it. Raises CorruptArtifact where it is damaged."""
        lease = self._blobs.keep(draft, digest)
        if self._may_be_full(lease.folder):
            self._forget_the_oldest()
        return lease

    def remove(self, digest: str) -> bool:
        """Forget a blob; False where somebody holds a lease of it."""
        return self._blobs.remove(digest)

    @property
    def disk(self) -> Path:
        """See `BlobFolder.disk`."""
        return self._blobs.disk

    def draft(self) -> AbstractContextManager[Path]:
        """A folder on the cache's disk for work in progress; it is gone afterwards."""
        return self._blobs.draft()

    def _may_be_full(self, folder: Path) -> bool:
        with os.scandir(folder) as files:
            size = sum(file.stat().st_size for file in files)
        with self._counting:
            self._come += size
            if self._come <= self._reserve:
                return False
            self._come = 0
            return True

    def _forget_the_oldest(self) -> None:
        blobs = sorted(self._blobs.stored(), key=lambda blob: blob.written)
        excess = sum(blob.bytes for blob in blobs) - self._kept
        for blob in blobs:
            if excess <= 0:
                return
            if self._blobs.remove(blob.digest):
                excess -= blob.bytes
        if excess > self._reserve:
            logger.warning("the adapters in use are more than the cache's bound: raise it")
