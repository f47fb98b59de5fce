"""The whole registry to a folder, and back into an empty one on whatever database and store.

Owns the format: `export.json` (written last: a folder with it is whole), `tables/NAME.jsonl`
with every row as it is, and `blobs/DIGEST/` with the served files of every version that has some.
Refuses merging: what is imported into must be empty. Keys travel as the hashes they are kept as.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Integer, Table, func, insert, select
from sqlalchemy.exc import SQLAlchemyError

from adapters.artifact import SERVED_FILES
from adapters.db import Base, UtcTime, VersionRow, writing
from adapters.errors import Conflict, StoreError
from adapters.files import as_store_error, sync_folder, write_durably
from adapters.migrate import newest_schema
from adapters.registry import Registry
from adapters.strictjson import Malformed, parse_object

FORMAT = 1
HEAD = "export.json"
LONGEST_ROW = 4 * 2**20
ROWS_AT_ONCE = 500

Row = dict[str, Any]


@dataclass(frozen=True)
class Transfer:
    """How much was carried."""

    rows: dict[str, int]
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
    if os.path.lexists(folder):
        raise Conflict(f"The folder {folder} exists: name a folder that does not exist yet.")
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        (draft / "tables").mkdir(parents=True)
        # As a writer, so that nobody changes one table after another was read.
        with writing(registry.engine) as session:
            rows = {
                table.name: _write_table(session.connection(), table, draft / "tables")
                for table in Base.metadata.sorted_tables
            }
            digests = session.scalars(select(VersionRow.digest).distinct()).all()
        blobs = [
            _copy_blob(registry, d, draft / "blobs") for d in digests if registry.store.holds(d)
        ]
        head = {"format": FORMAT, "schema": newest_schema(), "rows": rows}
        write_durably(draft / HEAD, [json.dumps(head, indent=2).encode()])
        sync_folder(draft)
        draft.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise as_store_error(error, folder) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Transfer(rows, len(blobs), sum(blobs))


def import_registry(registry: Registry, folder: Path) -> Transfer:
    """Put back what `export_registry` wrote, rows in one transaction, numbers and all.

    Raises Conflict where the registry is not empty, StoreError where the folder is not whole.
    """
    rows = _head_of(folder)
    with writing(registry.engine) as session:
        _refuse_used(session.connection())
    blobs = []
    for place in sorted((folder / "blobs").iterdir()) if (folder / "blobs").is_dir() else ():
        if registry.store.put(place) != f"sha256:{place.name}":
            raise StoreError(f"{place} is damaged: export again.")
        blobs.append(_size_of(place))
    with writing(registry.engine) as session:
        connection = session.connection()
        _refuse_used(connection)
        for table in Base.metadata.sorted_tables:
            found = _read_table(connection, table, folder / "tables" / f"{table.name}.jsonl")
            if found != rows.get(table.name, 0):
                raise StoreError(f"{folder} lacks rows of {table.name}: export again.")
    return Transfer(rows, len(blobs), sum(blobs))


def _write_table(connection: Connection, table: Table, folder: Path) -> int:
    count = 0

    def lines() -> Iterator[bytes]:
        nonlocal count
        for row in connection.execute(select(table)).mappings():
            count += 1
            yield json.dumps({k: _plain(v) for k, v in row.items()}).encode() + b"\n"

    write_durably(folder / f"{table.name}.jsonl", lines())
    return count


def _copy_blob(registry: Registry, digest: str, folder: Path) -> int:
    target = folder / digest.removeprefix("sha256:")
    target.mkdir(parents=True)
    with registry.store.lease(digest) as source:
        for name in SERVED_FILES:
            shutil.copyfile(source / name, target / name)
    return _size_of(target)


def _size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _head_of(folder: Path) -> dict[str, int]:
    """How many rows each table has. Raises StoreError for what this program cannot read."""
    try:
        head = parse_object((folder / HEAD).read_bytes(), max_bytes=LONGEST_ROW)
        schema, rows = head["schema"], {str(k): int(v) for k, v in head["rows"].items()}
    except (OSError, Malformed, KeyError, TypeError, ValueError, AttributeError):
        raise StoreError(f"{folder} is no whole export: it has no readable {HEAD}.") from None
    if (head.get("format"), schema) != (FORMAT, newest_schema()):
        raise StoreError(
            f"{folder} was exported with the schema {str(schema)[:40]}, this is"
            f" {newest_schema()}: import it with the bapo-server that wrote it, upgrade, export."
        )
    return rows


def _refuse_used(connection: Connection) -> None:
    for table in Base.metadata.sorted_tables:
        if connection.execute(select(table).limit(1)).first() is not None:
            raise Conflict(
                f"This registry is not empty, it has {table.name}: import into a new data folder"
                " or database."
            )


def _read_table(connection: Connection, table: Table, file: Path) -> int:
    count = 0
    try:
        with file.open("rb") as lines:
            for rows in _batches(_row(table, line) for line in lines):
                connection.execute(insert(table), rows)
                count += len(rows)
    except (OSError, Malformed, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{file} cannot be read: export again.") from error
    except SQLAlchemyError as error:
        raise StoreError(f"{file} does not fit the registry's tables: export again.") from error
    _advance_sequence(connection, table)
    return count


def _row(table: Table, line: bytes) -> Row:
    row = parse_object(line, max_bytes=LONGEST_ROW)
    return {column.name: _typed(column.type, row[column.name]) for column in table.columns}


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == ROWS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _advance_sequence(connection: Connection, table: Table) -> None:
    """PostgreSQL counts apart from the rows; SQLite looks at them."""
    if connection.dialect.name != "postgresql":
        return
    for column in table.primary_key.columns:
        if isinstance(column.type, Integer) and column.autoincrement is True:
            sequence = func.pg_get_serial_sequence(table.name, column.name)
            last = select(func.max(column)).scalar_subquery()
            connection.execute(select(func.setval(sequence, last)).where(last.is_not(None)))


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _typed(kind: Any, value: Any) -> Any:
    return datetime.fromisoformat(value) if isinstance(kind, UtcTime) and value else value
