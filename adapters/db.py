"""The registry's tables, and how its database is opened.

Owns the SQLAlchemy mapping and the connection settings; the changes over time are in
`migrations/`. Refuses every rule about adapters; those are `registry.py`'s. Times are UTC.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    DateTime,
    Engine,
    ForeignKey,
    Integer,
    String,
    UniqueConstraint,
    create_engine,
    event,
)
from sqlalchemy.exc import DatabaseError, IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.types import TypeDecorator

from adapters.errors import StoreError, StoreFull

BUSY_MILLISECONDS = 15_000


def now() -> datetime:
    return datetime.now(UTC)


class UtcTime(TypeDecorator[datetime]):
    """An aware datetime in UTC, also on databases that keep no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value and value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    pass


class AdapterRow(Base):
    __tablename__ = "adapters"

    id: Mapped[str] = mapped_column(String(127), primary_key=True)
    owner: Mapped[str | None] = mapped_column(String(128))
    public: Mapped[bool] = mapped_column(default=False)
    active_version: Mapped[int | None]
    previous_version: Mapped[int | None]
    retired: Mapped[datetime | None] = mapped_column(UtcTime)
    created: Mapped[datetime] = mapped_column(UtcTime, default=now)


class VersionRow(Base):
    __tablename__ = "versions"
    __table_args__ = (
        UniqueConstraint("adapter_id", "version"),
        UniqueConstraint("adapter_id", "idempotency_key"),
        {"sqlite_autoincrement": True},  # an engine id is never used again
    )

    engine_id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id"))
    version: Mapped[int]
    digest: Mapped[str] = mapped_column(String(71))
    rank: Mapped[int]
    bytes: Mapped[int]
    base_fingerprint: Mapped[str] = mapped_column(String(71))
    manifest: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    created: Mapped[datetime] = mapped_column(UtcTime, default=now)


class GrantRow(Base):
    __tablename__ = "grants"

    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id"), primary_key=True)
    user_id: Mapped[str] = mapped_column(String(128), primary_key=True)


class UserRow(Base):
    __tablename__ = "users"

    id: Mapped[str] = mapped_column(String(128), primary_key=True)
    assigned: Mapped[str | None] = mapped_column(ForeignKey("adapters.id"))
    created: Mapped[datetime] = mapped_column(UtcTime, default=now)


class KeyRow(Base):
    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    role: Mapped[str] = mapped_column(String(16))
    user_id: Mapped[str | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    digest: Mapped[str] = mapped_column(String(64))
    expires: Mapped[datetime | None] = mapped_column(UtcTime)
    created: Mapped[datetime] = mapped_column(UtcTime, default=now)


class AuditRow(Base):
    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(UtcTime, default=now)
    actor: Mapped[str] = mapped_column(String(128))
    action: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(String(128))
    details: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)


def connect(url: str) -> Engine:
    """An engine for the database at `url`; on SQLite with a write-ahead log and foreign keys."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """A session for looking only; on SQLite it waits for no writer. Raises StoreError."""
    try:
        with Session(engine, expire_on_commit=False) as session:
            yield session
    except DatabaseError as error:
        raise _as_store_error(error) from error


@contextmanager
def writing(engine: Engine) -> Iterator[Session]:
    """A session whose changes are kept together or not at all. Raises StoreError, StoreFull."""
    writer = engine.execution_options(writes=True)
    try:
        with Session(writer, expire_on_commit=False) as session, session.begin():
            yield session
    except IntegrityError:
        raise  # not the database's trouble: the caller knows which rule was broken
    except DatabaseError as error:
        raise _as_store_error(error) from error


def _as_store_error(error: DatabaseError) -> StoreError:
    reason = str(error.orig).rstrip(".")
    if "full" in reason:
        return StoreFull("No space is left for the registry's database: free some and try again.")
    return StoreError(f"The registry's database does not answer ({reason}): try again.")


def _prepare_sqlite(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions on its own
    # The time-out first: turning the log on is the first thing that may have to wait.
    for pragma in (f"busy_timeout={BUSY_MILLISECONDS}", "journal_mode=WAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Any) -> None:
    """A writer takes the lock at once: a transaction that upgrades later could only fail."""
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
