"""Brings the registry's database to the present schema, with Alembic.

Owns running the migrations in `migrations/`; what the tables are is `db.py`'s. Two processes that
start at once are safe: one of them upgrades and the other finds it done. On SQLite a file lock sees
to that, since the log is turned on outside of transactions; on PostgreSQL the writers' own lock.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from adapters.connection import WRITERS, reason
from adapters.errors import StoreError

MIGRATIONS = Path(__file__).resolve().parent / "migrations"
UPGRADE_SECONDS = 600


def newest_schema() -> str:
    """The revision that this program works with."""
    head = ScriptDirectory.from_config(alembic_config()).get_current_head()
    if head is None:
        raise StoreError(f"No migrations are in {MIGRATIONS.name}: install bapo-server again.")
    return head


def upgrade(engine: Engine, lock: Path) -> None:
    """Upgrade to the newest schema; nothing happens where it is there. Raises StoreError.

    `lock` is a file that processes on a SQLite database share; PostgreSQL needs none.
    """
    config = alembic_config()
    alone = _alone_on_sqlite if engine.dialect.name == "sqlite" else _alone_on_postgresql
    try:
        with alone(engine, lock) as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except DBAPIError as error:
        raise StoreError(f"The registry's database cannot be opened: {reason(error)}.") from error
    except CommandError as error:
        raise StoreError(
            f"The registry's database was made by a newer bapo-server ({error}): install that."
        ) from error


@contextmanager
def _alone_on_sqlite(engine: Engine, lock: Path) -> Iterator[Connection]:
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with engine.execution_options(writes=True).begin() as connection:
            yield connection


@contextmanager
def _alone_on_postgresql(engine: Engine, lock: Path) -> Iterator[Connection]:
    """A migration may take longer than any writer, and so may the wait for one."""
    with engine.begin() as connection:
        for setting in ("lock_timeout", "statement_timeout"):
            connection.exec_driver_sql(f"SET LOCAL {setting} = '{UPGRADE_SECONDS}s'")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS})")
        yield connection


def alembic_config() -> Config:
    """Alembic's settings; `attributes["connection"]` is the caller's to give."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
