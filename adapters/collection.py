"""Garbage collection: stored bytes that no version of a living adapter names are removed.

Owns the decision, one blob at a time, each inside a write transaction: a publish names its bytes in
one as well, and puts them again if they are gone by then, so none can lose them. Refuses young
bytes, whose publish may still be under way, and those that somebody holds a lease of. The version
rows of retired adapters stay as tombstones.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from adapters.audit import log
from adapters.catalogue import living_digests
from adapters.db import VersionRow, now, writing
from adapters.errors import CorruptArtifact
from adapters.registry import Registry
from adapters.store import StoredBlob


@dataclass(frozen=True)
class Collected:
    """What a collection removed, or would remove, and what it left because it is in use."""

    removed: tuple[StoredBlob, ...]
    in_use: tuple[StoredBlob, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "removed": len(self.removed),
            "bytes": sum(blob.bytes for blob in self.removed),
            "in_use": len(self.in_use),
        }


def collect(
    registry: Registry, *, older_than: timedelta, dry_run: bool = False, actor: str = "local"
) -> Collected:
    """Remove what nobody names and is older than that. Raises StoreError, with some removed."""
    removed: list[StoredBlob] = []
    in_use: list[StoredBlob] = []
    for blob in list(_candidates(registry, older_than)):
        if dry_run:
            removed.append(blob)
            continue
        with writing(registry.engine) as session:
            again = living_digests().where(VersionRow.digest == blob.digest)
            if session.scalar(again) is None:  # nobody published it since
                if registry.store.remove(blob.digest):
                    log(session, actor, "store.remove", blob.digest, bytes=blob.bytes)
                    removed.append(blob)
                else:
                    in_use.append(blob)
    return Collected(tuple(removed), tuple(in_use))


def damaged(registry: Registry, digests: Iterable[str]) -> dict[str, str]:
    """Of these digests the ones whose stored bytes are not what they were, with a sentence each."""
    found = {}
    for digest in digests:
        try:
            registry.store.verify(digest)
        except CorruptArtifact as error:
            found[digest] = str(error)
    return found


def _candidates(registry: Registry, older_than: timedelta) -> Iterator[StoredBlob]:
    """Looked for without a lock, so that a large store holds no publish up."""
    oldest = now() - older_than
    named = set(registry.digests())
    for blob in registry.store.stored():
        if blob.written <= oldest and blob.digest not in named:
            yield blob
