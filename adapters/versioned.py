"""The files of every version of one adapter, to be read and not kept.

Owns where they come from: leases on the store where the registry is here, copies of this adapter's
versions where it is a server's. Refuses what is done with them.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from adapters.artifact import Manifest
from adapters.remote import RemoteRegistry
from adapters.terminal import Where


@dataclass(frozen=True)
class VersionFiles:
    """A version in the form that is served, its folder there for as long as it was asked for."""

    name: str
    folder: Path
    manifest: Manifest | None


@contextmanager
def versions_of(where: Where, adapter_id: str) -> Iterator[list[VersionFiles]]:
    """Every version of an adapter, the first one first, as `adapter@number`.

    Raises AdapterNotFound, and StoreError where files are gone or damaged.
    """
    with where.registry() as registry, ExitStack() as held:
        listed = registry.describe(adapter_id)["versions"]
        numbers = {row["digest"]: row["version"] for row in listed}  # equal bytes are read once
        folders: dict[str, Path] = {}
        if isinstance(registry, RemoteRegistry):
            work = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="bapo-history-")))
            for digest, version in numbers.items():
                folders[digest] = work / str(version)
                registry.fetch(adapter_id, version, digest, folders[digest])
        else:
            store = held.enter_context(where.local()).store
            for digest in numbers:
                folders[digest] = held.enter_context(store.lease(digest))
        yield [
            VersionFiles(
                f"{adapter_id}@{row['version']}",
                folders[row["digest"]],
                Manifest.model_validate(row["manifest"]) if row["manifest"] else None,
            )
            for row in listed
        ]
