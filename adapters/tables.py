"""The registry's rows as lines of JSON, a file for each table, and back.

Owns reading and writing them and the check of every value that comes back, since a row that the
registry could not have written itself would be in everybody's way. Refuses bytes and folders'
layout (`transfer.py`). Keys travel as the hashes they are kept as.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Float,
    Integer,
    String,
    Table,
    delete,
    func,
    insert,
    select,
)
from sqlalchemy.exc import SQLAlchemyError

from adapters.accounts import Role
from adapters.arms import LARGEST_WEIGHT, State
from adapters.db import EVERYBODY, AnswerRow, AuditRow, Base, KeyRow, UtcTime
from adapters.errors import Conflict, InvalidExport
from adapters.files import write_durably
from adapters.names import is_adapter_id, is_label
from adapters.rows import LARGEST_VERSION, is_user_id
from adapters.strictjson import Malformed, parse_object
from adapters.turns import plain_turns

TRAVELLING = tuple(t for t in Base.metadata.sorted_tables if t.name != AnswerRow.__tablename__)
"""Answers are kept for a stated time, and a copy would not know of it; ratings have their own."""
LONGEST_ROW = 4 * 2**20
ROWS_AT_ONCE = 500
LARGEST_INTEGER = 2**63 - 1

Row = dict[str, Any]
Rule = Callable[[Any], bool]

# What a text or number must be besides being one; by table and column, or by column in any table.
RULES: Mapping[str, Rule] = {
    "adapters.id": is_adapter_id,
    "adapter_id": is_adapter_id,
    "assigned": is_adapter_id,
    "users.id": is_user_id,
    "groups.id": is_user_id,
    "user_id": is_user_id,
    "group_id": is_user_id,
    "adapters.owner": is_user_id,
    "quotas.owner": lambda owner: owner == EVERYBODY or is_user_id(owner),
    "api_keys.role": lambda role: role in list(Role),
    "experiments.state": lambda state: state in list(State),
    "ratings.experiment": is_label,
    "ratings.arm": is_label,
    "choice": lambda number: number >= 0,
    "prompt": lambda messages: plain_turns(messages) == messages,
    "experiment_arms.weight": lambda weight: 0 <= weight <= LARGEST_WEIGHT,
    "engine_id": lambda number: 0 < number <= LARGEST_VERSION,
    "version": lambda number: 0 < number <= LARGEST_VERSION,
    "active_version": lambda number: 0 < number <= LARGEST_VERSION,
}


def write_tables(connection: Connection, folder: Path) -> dict[str, int]:
    """What travels into the new `folder`; returns each table's number of rows. Raises StoreFull."""
    folder.mkdir()
    return {table.name: _write(connection, table, folder) for table in TRAVELLING}


def read_tables(connection: Connection, folder: Path, rows: Mapping[str, int]) -> None:
    """Insert what `write_tables` wrote, `rows` of each table, numbers and all.

    Raises InvalidExport for files that are not what it would have written.
    """
    for table in TRAVELLING:
        if _read(connection, table, folder / file_of(table.name)) != rows.get(table.name, 0):
            raise InvalidExport(f"Rows of {table.name} are missing: export again.")


def file_of(table: str) -> str:
    return f"{table}.jsonl"


def own_rows(connection: Connection) -> tuple[list[Row], list[Row]]:
    """The keys and lines of the log in a registry where nothing has happened but an admin key.

    That is what a server makes at its first start. Raises Conflict where there is more.
    """
    keys = [dict(row) for row in connection.execute(select(KeyRow.__table__)).mappings()]
    query = select(AuditRow.__table__).order_by(AuditRow.id).limit(ROWS_AT_ONCE)
    lines = [dict(row) for row in connection.execute(query).mappings()]
    for table in Base.metadata.sorted_tables:
        if table.name == KeyRow.__tablename__:
            used = any(key["role"] != Role.ADMIN or key["user_id"] for key in keys)
        elif table.name == AuditRow.__tablename__:
            used = any(not line["action"].startswith("key.") for line in lines)
        else:
            used = connection.execute(select(table).limit(1)).first() is not None
        if used:
            raise Conflict(
                f"This registry is not empty, it has {table.name}: import into a new data folder"
                " or database."
            )
    return keys, lines


def clear(connection: Connection) -> None:
    """Take out what `own_rows` found, so that the numbers are free."""
    for row in (KeyRow, AuditRow):
        connection.execute(delete(row))


def put_back(connection: Connection, keys: Iterable[Row], lines: Iterable[Row]) -> None:
    """The registry's own keys again, and its own lines after the others."""
    known = set(connection.scalars(select(KeyRow.id)))
    for key in keys:
        if key["id"] not in known:
            connection.execute(insert(KeyRow).values(key))
    for line in lines:
        connection.execute(insert(AuditRow).values({k: v for k, v in line.items() if k != "id"}))


def _write(connection: Connection, table: Table, folder: Path) -> int:
    count = 0

    def lines() -> Iterator[bytes]:
        nonlocal count
        for row in connection.execute(select(table)).mappings():
            count += 1
            yield json.dumps({k: _plain(v) for k, v in row.items()}).encode() + b"\n"

    write_durably(folder / file_of(table.name), lines())
    return count


def _read(connection: Connection, table: Table, file: Path) -> int:
    count = 0
    try:
        rows = _rows(table, file)
        while batch := list(islice(rows, ROWS_AT_ONCE)):
            connection.execute(insert(table), batch)
            count += len(batch)
    except (OSError, Malformed, KeyError, TypeError, ValueError) as error:
        raise InvalidExport(f"{file.name} cannot be read: export again.") from error
    except SQLAlchemyError as error:
        raise InvalidExport(
            f"{file.name} does not fit the registry's tables: export again."
        ) from error
    _advance_sequence(connection, table)
    return count


def _rows(table: Table, file: Path) -> Iterator[Row]:
    with file.open("rb") as lines:
        while line := lines.readline(LONGEST_ROW + 1):
            row = parse_object(line, max_bytes=LONGEST_ROW)
            yield {column.name: _typed(column, row[column.name]) for column in table.columns}


def _typed(column: Column[Any], value: Any) -> Any:
    """The value as the column has it. Raises ValueError where it could not have come from there."""
    if value is None:
        if not column.nullable:
            raise ValueError(f"{column} is missing")
        return None
    if isinstance(column.type, UtcTime):
        when = datetime.fromisoformat(value)
        if when.tzinfo is None:
            raise ValueError(f"{column} has no zone")
        return when
    if not _fits(column.type, value):
        raise ValueError(f"{column} is no {column.type}")
    rule = RULES.get(f"{column.table.name}.{column.name}") or RULES.get(column.name)
    if rule is not None and not rule(value):
        raise ValueError(f"{column} may not be so")
    return value


def _fits(kind: Any, value: Any) -> bool:
    if isinstance(kind, Boolean):
        return isinstance(value, bool)
    if isinstance(kind, Integer):
        return type(value) is int and abs(value) <= LARGEST_INTEGER
    if isinstance(kind, Float):
        return type(value) in (int, float)
    if isinstance(kind, String):
        return isinstance(value, str) and len(value) <= (kind.length or LONGEST_ROW)
    return isinstance(kind, JSON)


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
