"""The whole registry to a folder, and back into an empty one on whatever database and store.

Owns the format: `export.json` (written last: a folder with it is whole), `tables/NAME.jsonl` with
every row as it is (`tables.py`; answers stay, which are kept for a while only), and `blobs/DIGEST/`
with the served files of every adapter that is not retired. Over the network the same files travel
as an archive (`carriage.py`). Refuses merging: what is imported into must be empty, but for the
admin key that a server makes at its first start.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from adapters import tables
from adapters.artifact import SERVED_FILES, artifact_digest
from adapters.audit import log
from adapters.catalogue import living_digests
from adapters.db import writing
from adapters.errors import Conflict, InvalidAdapter, InvalidExport
from adapters.files import as_store_error, sync_folder, write_durably
from adapters.loading import read_all
from adapters.migrate import newest_schema
from adapters.registry import Registry
from adapters.strictjson import Malformed, parse_object

FORMAT = 1
HEAD, TABLES, BLOBS = "export.json", "tables", "blobs"
LARGEST_HEAD = 2**20


@dataclass(frozen=True)
class Transfer:
    """How much was carried."""

    rows: Mapping[str, int]
    blobs: int
    bytes: int

    def sentence(self, done: str) -> str:
        """For people."""
        adapters, versions = self.rows.get("adapters", 0), self.rows.get("versions", 0)
        return (
            f"{adapters} adapters with {versions} versions, {self.rows.get('users', 0)} users and"
            f" {self.blobs} stored adapters ({self.bytes / 2**20:.1f} MiB) {done}"
        )


def export_registry(registry: Registry, folder: Path) -> Transfer:
    """Write everything to the new `folder`, which is there whole or not at all.

    Raises Conflict where something is there, StoreError, StoreFull, CorruptArtifact.
    """
    with new_export(folder) as draft:
        head, digests = write_rows(registry, draft / TABLES)
        for digest in digests:
            target = place_of(draft, digest)
            target.mkdir(parents=True)
            with registry.store.lease(digest) as source:
                for name in SERVED_FILES:
                    shutil.copyfile(source / name, target / name)
        write_durably(draft / HEAD, [head])
        return check_export(draft)


def import_registry(registry: Registry, folder: Path, *, actor: str = "local") -> Transfer:
    """Put back what `export_registry` wrote, rows in one transaction, numbers and all.

    Raises Conflict where the registry is not empty, InvalidExport where the folder is not whole.
    """
    rows = read_head(folder)
    refuse_used(registry)
    blobs = blobs_of(folder)
    for place in blobs:
        keep_blob(registry, place)
    return import_rows(registry, folder, rows, map(size_of, blobs), actor)


@contextmanager
def new_export(folder: Path) -> Iterator[Path]:
    """A draft for what becomes `folder` at the end of the block, and nothing where that fails.

    Raises Conflict where something is there, StoreError, StoreFull.
    """
    if os.path.lexists(folder):
        raise Conflict(f"The folder {folder} exists: name a folder that does not exist yet.")
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        draft.mkdir(parents=True)
        yield draft
        sync_folder(draft)
        draft.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise as_store_error(error, folder) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_rows(registry: Registry, folder: Path) -> tuple[bytes, list[str]]:
    """Every row of one moment into `folder`; returns the head, and the digests of what is kept."""
    # As a writer, so that nobody changes one table after another was read.
    with writing(registry.engine) as session:
        rows = tables.write_tables(session.connection(), folder)
        digests = list(session.scalars(living_digests()))
    head = {"format": FORMAT, "schema": newest_schema(), "rows": rows}
    return json.dumps(head, indent=2).encode(), digests


def refuse_used(registry: Registry) -> None:
    """Raises Conflict where the registry is not empty."""
    with writing(registry.engine) as session:
        tables.own_rows(session.connection())


def keep_blob(registry: Registry, place: Path) -> None:
    """Store an exported adapter. Raises InvalidExport where it is not what its folder is called."""
    try:
        if registry.store.put(place) == f"sha256:{place.name}":
            return
    except InvalidAdapter:  # a file is missing
        pass
    raise InvalidExport(f"The exported adapter {place.name} is damaged: export again.")


def import_rows(
    registry: Registry, folder: Path, rows: Mapping[str, int], sizes: Iterable[int], actor: str
) -> Transfer:
    """Every row of `folder` in one transaction, and its line in the log. The bytes come before.

    Raises Conflict where the registry is not empty, InvalidExport where something is missing.
    """
    with writing(registry.engine) as session:
        connection = session.connection()
        keys, lines = tables.own_rows(connection)
        tables.clear(connection)
        tables.read_tables(connection, folder / TABLES, rows)
        tables.put_back(connection, keys, lines)
        log(session, actor, "registry.import", "registry", **rows)
        session.flush()
        # Rows that no view could read would be in the way of every server.
        read_all(session)
        # A collection takes what nobody names, and until now nobody named these.
        held = {blob.digest for blob in registry.store.stored()}
        if missing := set(session.scalars(living_digests())) - held:
            raise InvalidExport(f"The bytes of {min(missing)} are missing: export again.")
    carried = list(sizes)
    return Transfer(dict(rows), len(carried), sum(carried))


def read_head(folder: Path) -> dict[str, int]:
    """How many rows each table has. Raises InvalidExport for what this program cannot read."""
    try:
        head = parse_object((folder / HEAD).read_bytes(), max_bytes=LARGEST_HEAD)
        schema, rows = head["schema"], {str(k): int(v) for k, v in head["rows"].items()}
    except (OSError, Malformed, KeyError, TypeError, ValueError, AttributeError):
        raise InvalidExport(
            f"{folder.name} is no whole export: it has no readable {HEAD}."
        ) from None
    if (head.get("format"), schema) != (FORMAT, newest_schema()):
        raise InvalidExport(
            f"{folder.name} was exported with the schema {str(schema)[:40]}, this is"
            f" {newest_schema()}: import it with the bapo-server that wrote it, upgrade, export."
        )
    return rows


def check_export(folder: Path) -> Transfer:
    """What a folder holds. Raises InvalidExport where something is missing or damaged."""
    rows = read_head(folder)
    for table in tables.TRAVELLING:
        if not (folder / TABLES / tables.file_of(table.name)).is_file():
            raise InvalidExport(f"Rows of {table.name} are missing: export again.")
    blobs = blobs_of(folder)
    for place in blobs:
        if artifact_digest(place) != f"sha256:{place.name}":
            raise InvalidExport(f"The exported adapter {place.name} is damaged: export again.")
    return Transfer(rows, len(blobs), sum(map(size_of, blobs)))


def blobs_of(folder: Path) -> list[Path]:
    """The folders of the exported adapters."""
    return sorted((folder / BLOBS).iterdir()) if (folder / BLOBS).is_dir() else []


def place_of(folder: Path, digest: str) -> Path:
    return folder / BLOBS / digest.removeprefix("sha256:")


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
