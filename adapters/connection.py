"""How the registry's database is opened, read and written: SQLite or PostgreSQL.

Owns the URL, the settings of a connection, transactions, and the words for a database that fails.
Refuses tables (`db.py`) and rules. A reader sees one moment and waits for no writer; writers wait
for one another, so what one of them read holds until it commits, and nothing waits for ever. No
error that leaves here holds a password, an SQL parameter or a row.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolExhausted
from sqlalchemy.orm import Session

from adapters.errors import StoreError, StoreFull

BUSY_MILLISECONDS = 15_000
STATEMENT_MILLISECONDS = 30_000
"""Longer than a writer waits for its turn, so that the wait is what gets reported."""
IDLE_MILLISECONDS = 120_000
"""A writer that stops in the middle (a machine asleep, a store that hangs) loses its turn."""
WRITERS = 0x6261706F
"""The advisory lock that a writer on PostgreSQL takes first: "bapo" as a number."""

POSTGRESQL = {"postgres", "postgresql", "postgresql+psycopg"}
# A server that is gone without a word (a cable, a firewall) is noticed within half a minute.
PATIENCE = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}


def connect(url: str | URL) -> Engine:
    """An engine for the database at `url`; nothing is asked of it yet. Raises StoreError."""
    where = _parsed(url)
    if where.get_backend_name() == "sqlite":
        engine = create_engine(where, hide_parameters=True)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    engine = create_engine(
        where,
        hide_parameters=True,
        pool_pre_ping=True,  # connections that died while they lay in the pool are replaced
        pool_timeout=BUSY_MILLISECONDS / 1000,
        connect_args={k: v for k, v in PATIENCE.items() if k not in where.query},
    )
    event.listen(engine, "connect", _prepare_postgresql)
    event.listen(engine, "begin", _begin_postgresql)
    return engine


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """A session for looking only, at one moment of the database. Raises StoreError."""
    if engine.dialect.name == "postgresql":  # SQLite's readers see one moment anyway
        engine = engine.execution_options(isolation_level="REPEATABLE READ")
    with _reported(), Session(engine, expire_on_commit=False) as session:
        yield session


@contextmanager
def writing(engine: Engine) -> Iterator[Session]:
    """A session whose changes are kept together or not at all; one at a time has one.

    It is this writer's turn from the first line on, also where that asks the store and not the
    database. Raises StoreError, StoreFull.
    """
    writer = engine.execution_options(writes=True)
    with _reported(), Session(writer, expire_on_commit=False) as session, session.begin():
        session.connection()  # else the transaction would begin with its first statement
        yield session


@contextmanager
def counting(engine: Engine) -> Iterator[Session]:
    """A session that adds to numbers, in no order with the writers' and without waiting for them.

    On SQLite there is only one who writes, whatever he writes. Raises StoreError, StoreFull.
    """
    if engine.dialect.name == "sqlite":
        with writing(engine) as session:
            yield session
        return
    with _reported(), Session(engine, expire_on_commit=False) as session, session.begin():
        yield session


@contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except IntegrityError:
        raise  # not the database's trouble: a rule of ours is broken
    except (DBAPIError, PoolExhausted) as error:
        raise _as_store_error(error) from error


def _as_store_error(error: SQLAlchemyError) -> StoreError:
    """The domain's word for a failure of the database."""
    cause = error.orig if isinstance(error, DBAPIError) else None
    if getattr(cause, "sqlite_errorname", "") == "SQLITE_FULL" or _state(cause) == "53100":
        return StoreFull("No space is left for the registry's database: free some and try again.")
    return StoreError(f"The registry's database does not answer ({reason(error)}): try again.")


def reason(error: SQLAlchemyError) -> str:
    """Why the database failed: its own first line, without where it is."""
    if not isinstance(error, DBAPIError) or error.orig is None:
        return "every connection is in use"
    text = str(error.orig).strip().rpartition("failed: ")[2].partition("\n")[0]
    if _state(error.orig) is None and any(sign in text for sign in "'\"[") and "FATAL" not in text:
        return "it cannot be reached"  # what libpq says of a host that it does not find
    return text.removeprefix("FATAL:").strip().rstrip(".") or type(error.orig).__name__


def _state(cause: object) -> str | None:
    """PostgreSQL's code of the failure, None where it had no word in it."""
    code = getattr(cause, "sqlstate", None)
    return code if isinstance(code, str) else None


def _parsed(url: str | URL) -> URL:
    """The URL with the driver that we ship. Raises StoreError, in which no part of it is shown."""
    try:
        where = make_url(url)
    except (ArgumentError, ValueError):  # whose words hold pieces of a password with special signs
        where = None
    if where is None or "@" in (where.host or ""):
        raise StoreError(
            "The database URL cannot be read: write postgresql://user:password@host/name, with"
            " special characters of the password in percent form (@ is %40, / is %2F)."
        )
    if where.drivername in POSTGRESQL:
        return _secret_kept(where.set(drivername="postgresql+psycopg"))
    if where.drivername != "sqlite":
        raise StoreError(
            f"A database of the kind {where.drivername!r} is not known: use postgresql:// or"
            " sqlite:///."
        )
    return where


def _secret_kept(where: URL) -> URL:
    """With a password of the query where URLs are expected to have it, and are printed without."""
    if not isinstance(secret := where.query.get("password"), str):
        return where
    return where.difference_update_query(["password"]).set(password=secret)


def _prepare_sqlite(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions on its own
    # The time-out first: turning the log on is the first thing that may have to wait.
    for pragma in (f"busy_timeout={BUSY_MILLISECONDS}", "journal_mode=WAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    """A writer takes the lock at once: a transaction that upgrades later could only fail."""
    connection.exec_driver_sql("BEGIN IMMEDIATE" if _writes(connection) else "BEGIN")


def _prepare_postgresql(connection: Any, record: Any) -> None:
    bounds = {
        "lock_timeout": BUSY_MILLISECONDS,
        "statement_timeout": STATEMENT_MILLISECONDS,
        "idle_in_transaction_session_timeout": IDLE_MILLISECONDS,
    }
    connection.execute("; ".join(f"SET {name} = {value}" for name, value in bounds.items()))
    connection.commit()


def _begin_postgresql(connection: Connection) -> None:
    """Writers queue here, before their first look, so they commit in the order of their ids."""
    if _writes(connection):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS})")


def _writes(connection: Connection) -> bool:
    return bool(connection.get_execution_options().get("writes", False))
