"""The schema comes up to date on both databases, once, and brings its rows along."""

import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, text

from adapters.accounts import Role
from adapters.base import BaseModelInfo
from adapters.db import Base, connect
from adapters.errors import AlreadyExists, Conflict, StoreError
from adapters.migrate import alembic_config, newest_schema, upgrade
from adapters.registry import DATABASE_FILE, Registry, open_registry

from postgres import Postgres

# A registry of the first schema: two versions of one adapter, the second active after the first;
# one that was rolled back, one that was never active, one retired.
FIRST = """
insert into users values ('alice', null, '2026-01-01');
insert into adapters values ('twice', 'alice', false, 2, 1, null, '2026-01-01');
insert into adapters values ('back', null, true, 1, null, null, '2026-01-01');
insert into adapters values ('never', null, true, null, null, null, '2026-01-01');
insert into adapters values ('gone', 'alice', true, 1, null, '2026-01-02', '2026-01-01');
insert into versions values (1, 'twice', 1, 'sha256:1', 4, 10, 'f', null, 'k', '2026-01-01');
insert into versions values (2, 'twice', 2, 'sha256:2', 4, 20, 'f', null, null, '2026-01-01');
insert into versions values (3, 'back', 1, 'sha256:1', 4, 10, 'f', null, null, '2026-01-01');
insert into versions values (4, 'gone', 1, 'sha256:4', 4, 10, 'f', null, null, '2026-01-01');
insert into grants values ('twice', 'alice');
update users set assigned = 'twice';
insert into audit values (1, '2026-01-01', 'root', 'adapter.publish', 'twice', '{}');
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without tables, that of a registry in `tmp_path`."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / DATABASE_FILE}"
        return
    server: Postgres = request.getfixturevalue("postgres_server")
    url = server.create_database()
    yield url
    server.drop_database(url)


@pytest.fixture
def first(empty: str) -> Iterator[Engine]:
    """A database of the first schema, with rows."""
    engine = connect(empty)
    config = alembic_config()
    with engine.execution_options(writes=True).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for statement in FIRST.strip().split(";\n"):
            connection.execute(text(statement.rstrip(";\n")))
        if engine.dialect.name == "postgresql":  # which counts apart from the rows
            connection.execute(text("select setval('versions_engine_id_seq', 4)"))
            connection.execute(text("select setval('audit_id_seq', 1)"))
    yield engine
    engine.dispose()


def test_the_migrations_make_what_the_code_expects(registry: Registry) -> None:
    with registry.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_an_old_database_keeps_its_rows(
    first: Engine, empty: str, tmp_path: Path, craft: Callable[..., Path], base: BaseModelInfo
) -> None:
    registry = open_registry(tmp_path, empty)
    described = registry.describe("twice")
    assert [(v["version"], v["bytes"]) for v in described["versions"]] == [(1, 10), (2, 20)]
    assert (described["owner"], described["granted_to"]) == ("alice", ["alice"])
    assert registry.resolve("twice", user_id="alice").engine_id == 2
    assert [v.ref for v in registry.usable(user_id="alice")] == ["back@1", "twice@2"]
    assert [entry.action for entry in registry.audit()] == ["adapter.publish"]
    assert registry.publish("twice", craft(), base=base).engine_id == 5
    with pytest.raises(AlreadyExists):
        registry.publish("twice", craft(), base=base, idempotency_key="k")
    registry.close()


def test_one_previous_version_becomes_a_stack(first: Engine, empty: str, tmp_path: Path) -> None:
    registry = open_registry(tmp_path, empty)
    assert registry.rollback("twice").version == 1
    for name in ("twice", "back", "never"):
        with pytest.raises(Conflict, match="no earlier"):
            registry.rollback(name)
    assert registry.resolve("back", is_admin=True).version == 1
    registry.activate("back", 1)
    registry.close()


def test_a_second_upgrade_changes_nothing(empty: str, tmp_path: Path) -> None:
    registry = open_registry(tmp_path, empty)
    registry.accounts.create_key(Role.ADMIN)
    registry.close()
    again = open_registry(tmp_path, empty)
    assert again.accounts.has_key(Role.ADMIN)
    again.close()


def test_two_servers_start_at_once(empty: str, tmp_path: Path) -> None:
    """One upgrades, the others wait for it; on PostgreSQL without a file between them."""
    lock = tmp_path / "lock" if empty.startswith("sqlite") else tmp_path / "no" / "such" / "folder"
    engines = [connect(empty) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda engine: upgrade(engine, lock), engines))
    with engines[0].connect() as connection:
        found = connection.execute(text("select version_num from alembic_version")).scalars().all()
    assert found == [newest_schema()]
    for engine in engines:
        engine.dispose()


def test_a_database_from_the_future(empty: str, tmp_path: Path) -> None:
    registry = open_registry(tmp_path, empty)
    with registry.engine.begin() as connection:
        connection.execute(text("update alembic_version set version_num = '9999'"))
    registry.close()
    with pytest.raises(StoreError, match="newer"):
        open_registry(tmp_path, empty)


def test_an_upgrade_that_fails_is_not_half_done(empty: str, tmp_path: Path, first: Engine) -> None:
    """A table of that name is in the way: the first schema and its rows are as they were."""
    with first.begin() as connection:
        connection.execute(text("create table quotas (x integer)"))
    with pytest.raises(StoreError, match="cannot be opened"):
        open_registry(tmp_path, empty)
    with first.begin() as connection:
        previous = "select previous_version from adapters where id = 'twice'"
        assert connection.execute(text(previous)).scalar() == 1
        connection.execute(text("drop table quotas"))
    open_registry(tmp_path, empty).close()


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / DATABASE_FILE).write_bytes(b"something else entirely" * 100)
    with pytest.raises(StoreError, match="cannot be opened"):
        open_registry(tmp_path)


def test_the_data_folder_may_be_called_anything(tmp_path: Path) -> None:
    data = tmp_path / "50% off? #1 & more"
    open_registry(data).close()
    with sqlite3.connect(data / DATABASE_FILE) as connection:
        assert connection.execute("select count(*) from adapters").fetchone() == (0,)
    connection.close()
    assert [path.name for path in tmp_path.iterdir()] == [data.name]
