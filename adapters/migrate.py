"""Brings the registry's database to the present schema, with Alembic.

Owns running the migrations in `migrations/`; what the tables are is `db.py`'s. Two processes that
start at once are safe: a file lock lets one of them upgrade and the other find it done.
"""

import fcntl
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Engine
from sqlalchemy.exc import DatabaseError

from adapters.errors import StoreError

MIGRATIONS = Path(__file__).resolve().parent / "migrations"


def upgrade(engine: Engine, lock: Path) -> None:
    """Upgrade to the newest schema; nothing happens where it is there. Raises StoreError."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        try:
            with engine.execution_options(writes=True).begin() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except DatabaseError as error:
            raise StoreError(
                f"The registry's database cannot be opened: {str(error.orig).rstrip('.')}."
            ) from error
        except CommandError as error:
            raise StoreError(
                f"The registry's database was made by a newer bapo-server ({error}): install that."
            ) from error
