"""The files of every version of one adapter, to be read and not kept.

Owns where they come from: leases on the store where the registry is here, an export where it is a
server's, which has no smaller way to hand files out. Refuses what is done with them.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from adapters.artifact import Manifest
from adapters.terminal import Where
from adapters.transfer import place_of


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
        if where.server:
            work = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="bapo-history-")))
            registry.export(work / "export")
            folders = {row["digest"]: place_of(work / "export", row["digest"]) for row in listed}
        else:
            store = held.enter_context(where.local()).store
            folders = {
                digest: held.enter_context(store.lease(digest))
                for digest in {row["digest"] for row in listed}
            }
        yield [
            VersionFiles(
                f"{adapter_id}@{row['version']}",
                folders[row["digest"]],
                Manifest.model_validate(row["manifest"]) if row["manifest"] else None,
            )
            for row in listed
        ]
