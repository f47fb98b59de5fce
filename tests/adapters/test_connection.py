"""A database that is wrong, away, silent or busy is said in one sentence, and found again."""

import signal
import socket
import sqlite3
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from adapters import connection
from adapters.base import BaseModelInfo
from adapters.db import connect, reading, writing
from adapters.errors import StoreError, StoreFull
from adapters.registry import DATABASE_FILE, AdapterVersion, Registry, open_registry

from postgres import Postgres

Publish = Callable[..., AdapterVersion]
SECRET = "p4ss-w0rd"


@pytest.fixture
def on_postgres(tmp_path: Path, postgres_url: str) -> Iterator[Registry]:
    opened = open_registry(tmp_path / "data", postgres_url)
    yield opened
    opened.close()


def test_sqlite_is_set_up_for_many(tmp_path: Path) -> None:
    registry = open_registry(tmp_path)
    with reading(registry.engine) as session:
        said = [
            session.scalar(text(f"pragma {name}"))
            for name in ("journal_mode", "foreign_keys", "busy_timeout")
        ]
    registry.close()
    assert said == ["wal", 1, connection.BUSY_MILLISECONDS]


def test_postgresql_waits_for_nothing_for_ever(on_postgres: Registry) -> None:
    with reading(on_postgres.engine) as session:
        said = [
            session.scalar(text(f"show {name}"))
            for name in ("lock_timeout", "statement_timeout", "transaction_isolation")
        ]
    assert said == ["15s", "30s", "repeatable read"]


@pytest.mark.parametrize("driver", ["postgres", "postgresql", "postgresql+psycopg"])
def test_a_url_may_name_the_driver_or_not(postgres_url: str, driver: str) -> None:
    engine = connect(postgres_url.replace("postgresql", driver, 1))
    with reading(engine) as session:
        assert session.scalar(text("select 1")) == 1
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "match"),
    [
        (f"postgresql://bapo:{SECRET}@127.0.0.1:PORT/postgres", "password authentication failed"),
        (f"postgresql://postgres:{SECRET}@127.0.0.1:1/bapo", "Connection refused"),
        (f"postgresql://postgres:{SECRET}@nowhere.invalid/bapo", "cannot be reached"),
        (f"postgresql://postgres:{SECRET}@/bapo?host=/no/such/folder", "No such file"),
        (f"postgresql://postgres@127.0.0.1:1/bapo?password={SECRET}", "Connection refused"),
        (f"postgresql://postgres:{SECRET}@127.0.0.1:1/bapo?no_such_option=1", "cannot be reached"),
        (f"postgresql://postgres:{SECRET}@127.0.0.1:nonsense/bapo", "cannot be read"),
        (f"postgresql://postgres:x@{SECRET}@127.0.0.1/bapo", "cannot be read"),
        (f"{SECRET}", "cannot be read"),
        (f"mysql://root:{SECRET}@127.0.0.1/bapo", "'mysql' is not known"),
        (f"postgresql+asyncpg://root:{SECRET}@127.0.0.1/bapo", "is not known"),
    ],
)
def test_what_is_wrong_is_said_without_the_password(
    postgres_server: Postgres, tmp_path: Path, url: str, match: str
) -> None:
    with pytest.raises(StoreError, match=match) as caught:
        open_registry(tmp_path, url.replace("PORT", str(postgres_server.port)))
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert str(caught.value).count("\n") == 0
    assert "127.0.0.1" not in str(caught.value)


def test_a_password_is_not_printed_with_its_engine() -> None:
    for url in (f"postgresql://u:{SECRET}@h/d", f"postgresql://u@h/d?password={SECRET}"):
        engine = connect(url)
        assert SECRET not in f"{engine!r} {engine.url}"
        assert engine.url.password == SECRET


def test_rows_are_in_no_error(registry: Registry) -> None:
    """An error of the database names no value that it was asked about."""
    with pytest.raises(StoreError) as caught, writing(registry.engine) as session:
        session.execute(text("select * from nowhere where key = :key"), {"key": SECRET})
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
def test_a_database_that_goes_away_and_comes_back(
    on_postgres: Registry,
    craft: Callable[..., Path],
    base: BaseModelInfo,
    postgres_server: Postgres,
    how: signal.Signals,
) -> None:
    """Whatever was acknowledged is there afterwards, in the same open registry."""
    folders = [craft(seed=seed) for seed in range(3)]
    made = on_postgres.publish("concise", folders[0], base=base, activate=True)
    with ThreadPoolExecutor(4) as pool:  # several connections lie in the pool
        list(pool.map(lambda _: on_postgres.list_adapters(), range(8)))
    postgres_server.stop(how)
    try:
        began = time.monotonic()
        for call in (
            lambda: on_postgres.resolve("concise", is_admin=True),
            lambda: on_postgres.publish("concise", folders[1], base=base),
            lambda: on_postgres.accounts.create_user("alice"),
        ):
            with pytest.raises(StoreError, match=r"^The registry's database does not answer \("):
                call()
        assert time.monotonic() - began < 5
    finally:
        postgres_server.start()
    assert on_postgres.resolve("concise", is_admin=True) == made
    assert on_postgres.publish("concise", folders[2], base=base).version == 2


def test_a_database_that_was_away_while_nobody_asked(
    on_postgres: Registry, postgres_server: Postgres
) -> None:
    """The connections in the pool are dead, and nobody has to fail to find that out."""
    on_postgres.accounts.create_user("alice")
    postgres_server.stop()
    postgres_server.start()
    on_postgres.accounts.create_user("bob")
    assert [user.id for user in on_postgres.accounts.list_users()] == ["alice", "bob"]


def test_a_writer_is_cut_off_in_the_middle(
    on_postgres: Registry, postgres_server: Postgres
) -> None:
    """Half of a change is none, and its turn is the next one's."""
    end = "select pg_terminate_backend(pid) from pg_stat_activity where state like 'idle in%'"

    def change() -> None:
        with writing(on_postgres.engine) as session:
            session.execute(text("insert into users (id, created) values ('half', now())"))
            postgres_server.execute(end)
            session.execute(text("insert into users (id, created) values ('other', now())"))

    with pytest.raises(StoreError, match="does not answer"):
        change()
    assert on_postgres.accounts.list_users() == []
    on_postgres.accounts.create_user("whole")


def test_a_server_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connection.PATIENCE, "connect_timeout", 2)  # libpq's least
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(StoreError, match="timeout"):
            open_registry(tmp_path, f"postgresql://u:{SECRET}@127.0.0.1:{port}/bapo")
    assert time.monotonic() - began < 4


def test_who_waits_too_long_is_told(
    tmp_path: Path, database_url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that never ends holds up no other for ever, and no reader at all.

    He has his turn from his first line, though he has asked nothing of the database yet.
    """
    monkeypatch.setattr(connection, "BUSY_MILLISECONDS", 300)
    registry = open_registry(tmp_path, database_url)
    with writing(registry.engine) as session:
        began = time.monotonic()
        with pytest.raises(StoreError, match="lock"):
            registry.accounts.create_user("alice")
        assert time.monotonic() - began < 3
        session.execute(text("insert into groups values ('slow', '2026-01-01')"))
        assert registry.groups.list() == []
    assert [group.id for group in registry.groups.list()] == ["slow"]
    registry.accounts.create_user("alice")
    registry.close()


def test_more_readers_than_connections(
    on_postgres: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_postgres.engine.pool, "_timeout", 0.1)
    held = [on_postgres.engine.connect() for _ in range(15)]
    with pytest.raises(StoreError, match="every connection is in use"):
        on_postgres.list_adapters()
    for one in held:
        one.close()
    assert on_postgres.list_adapters() == []


def test_a_reader_sees_one_moment(registry: Registry) -> None:
    """What is committed between two looks of one reader is not half seen."""
    with reading(registry.engine) as session:
        before = session.execute(text("select count(*) from users")).scalar()
        registry.accounts.create_user("alice")
        assert session.execute(text("select count(*) from users")).scalar() == before
        assert session.execute(text("select count(*) from audit")).scalar() == 0
    assert len(registry.accounts.list_users()) == 1


def test_the_log_is_in_the_order_of_the_commits(registry: Registry) -> None:
    """Whoever has seen a revision has seen all before it: writers take their turn first."""
    seen: list[int] = []

    def create(number: int) -> None:
        registry.accounts.create_user(f"user-{number}")

    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(create, number) for number in range(40)]
        while not all(one.done() for one in waiting):
            entries = registry.audit(limit=1000)
            seen.append(len(entries))
            assert [e.id for e in entries] == list(range(entries[0].id, 0, -1)) if entries else True
    assert [one.result() for one in waiting] == [None] * 40
    assert seen == sorted(seen)


def test_a_full_disk_under_sqlite(
    tmp_path: Path,
    craft: Callable[..., Path],
    base: BaseModelInfo,
    file_limit: Callable[[int], Any],
) -> None:
    registry = open_registry(tmp_path)
    folder = craft()
    with file_limit(4000), pytest.raises(StoreError):
        registry.publish("concise", folder, base=base)
    assert registry.list_adapters() == []
    assert registry.publish("concise", folder, base=base).version == 1
    with registry.engine.connect() as pooled:  # and used again below, with SQLite's own bound
        pooled.exec_driver_sql("pragma max_page_count = 1")
    with pytest.raises(StoreFull, match="No space is left"):
        fill(registry)
    registry.close()


def test_a_file_that_turns_into_something_else(tmp_path: Path) -> None:
    registry = open_registry(tmp_path)
    registry.close()
    path = tmp_path / DATABASE_FILE
    path.write_bytes(b"something else entirely" * 1000)
    for name in (f"{DATABASE_FILE}-wal", f"{DATABASE_FILE}-shm"):
        path.with_name(name).unlink(missing_ok=True)
    with pytest.raises(StoreError, match="does not answer"):
        registry.resolve("concise", is_admin=True)
    with pytest.raises(StoreError, match="does not answer"):
        registry.accounts.create_user("alice")
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(path).execute("select 1 from users")


def fill(registry: Registry) -> None:
    for number in range(1000):
        registry.accounts.create_user(f"user-{number}")
