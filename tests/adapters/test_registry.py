"""Versions are for ever, pointers move, and nobody learns of what he may not use."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from adapters.base import BaseModelInfo
from adapters.db import Base, connect
from adapters.errors import (
    AdapterNotFound,
    AlreadyExists,
    Conflict,
    IncompatibleBase,
    InvalidAdapter,
    InvalidName,
    StoreError,
    StoreFull,
    UserNotFound,
    VersionConflict,
    VersionNotFound,
)
from adapters.registry import AdapterVersion, Registry, open_registry
from adapters.validation import Limits

Publish = Callable[..., AdapterVersion]


@pytest.fixture
def publish(registry: Registry, craft: Callable[..., Path], base: BaseModelInfo) -> Publish:
    """Publishes an adapter of its own content, or that of `seed`."""
    seeds = iter(range(100, 200))

    def one(name: str = "concise", seed: int | None = None, **options: Any) -> AdapterVersion:
        folder = craft(seed=next(seeds) if seed is None else seed)
        return registry.publish(name, folder, base=base, **options)

    return one


def audit(tmp_path: Path) -> list[tuple[str, str, str]]:
    connection = sqlite3.connect(tmp_path / "data" / "registry.sqlite3")
    rows = connection.execute("select actor, action, subject from audit order by id").fetchall()
    connection.close()
    return rows


def test_publishing_numbers_versions(registry: Registry, publish: Publish) -> None:
    versions = [publish("alice/concise"), publish("alice/concise"), publish("other")]
    assert [v.ref for v in versions] == ["alice/concise@1", "alice/concise@2", "other@1"]
    assert len({v.engine_id for v in versions}) == 3
    for version in versions:
        registry.store.verify(version.digest)
        assert version.rank == 4


def test_what_is_published_is_not_active_yet(registry: Registry, publish: Publish) -> None:
    publish()
    with pytest.raises(AdapterNotFound):
        registry.resolve("concise", is_admin=True)
    publish(activate=True)
    assert registry.resolve("concise", is_admin=True).version == 2


def test_equal_content_is_two_versions_and_one_blob(registry: Registry, publish: Publish) -> None:
    first, second = publish(seed=1), publish(seed=1)
    assert (first.version, second.version) == (1, 2)
    assert first.engine_id != second.engine_id
    assert list(registry.digests()) == [first.digest]


def test_an_idempotency_key_publishes_once(registry: Registry, publish: Publish) -> None:
    first = publish(seed=1, idempotency_key="k", activate=True)
    assert publish(seed=1, idempotency_key="k", activate=True) == first
    assert len(registry.describe("concise")["versions"]) == 1
    with pytest.raises(AlreadyExists, match="take a new key"):
        publish(seed=2, idempotency_key="k")
    assert publish("other", seed=2, idempotency_key="k").version == 1


@pytest.mark.parametrize("name", ["base", "Concise", "../x", "pocket", ""])
def test_names_are_checked(publish: Publish, name: str) -> None:
    with pytest.raises(InvalidName):
        publish(name, reserved={"pocket"})


def test_a_refused_adapter_leaves_nothing(
    registry: Registry, craft: Callable[..., Path], base: BaseModelInfo, tmp_path: Path
) -> None:
    with pytest.raises(InvalidAdapter):
        registry.publish("a", craft(config={"use_dora": True}), base=base)
    with pytest.raises(IncompatibleBase):
        registry.publish("a", craft(fingerprint="sha256:" + "b" * 64), base=base)
    with pytest.raises(InvalidAdapter, match="over the limit"):
        registry.publish("a", craft(), base=base, limits=Limits(max_rank=2))
    assert registry.list_adapters() == []
    assert [path for path in (tmp_path / "data" / "store").rglob("*") if path.is_file()] == []


def test_what_rounding_empties_is_refused(
    registry: Registry, craft: Callable[..., Path], base: BaseModelInfo
) -> None:
    """Scaled by 1e-50 every B is zero in bf16: it would answer like the base."""
    with pytest.raises(InvalidAdapter, match="like the base"):
        registry.publish("a", craft(config={"lora_alpha": 1e-50}), base=base)


@pytest.mark.parametrize(("size", "kind"), [(700, StoreFull), (4000, StoreError)])
def test_a_full_disk_leaves_nothing(
    registry: Registry,
    craft: Callable[..., Path],
    base: BaseModelInfo,
    tmp_path: Path,
    file_limit: Callable[[int], Any],
    size: int,
    kind: type[StoreError],
) -> None:
    """Full while the weights are written; full when the database is."""
    folder = craft()
    with file_limit(size), pytest.raises(kind):
        registry.publish("concise", folder, base=base)
    assert registry.list_adapters() == []
    assert list((tmp_path / "data" / "store" / "drafts").iterdir()) == []
    assert registry.publish("concise", folder, base=base).version == 1


def test_activation_compares_and_swaps(registry: Registry, publish: Publish) -> None:
    for _ in range(3):
        publish()
    assert registry.activate("concise", 1, expected_version=0).version == 1
    assert registry.activate("concise", 2, expected_version=1).version == 2
    with pytest.raises(VersionConflict, match="Version 2 of 'concise' is active, not 1"):
        registry.activate("concise", 3, expected_version=1)
    assert registry.resolve("concise", is_admin=True).version == 2
    assert registry.activate("concise", 3).version == 3


@pytest.mark.parametrize("version", [0, 2, -1, 2**31, 10**30])
def test_versions_that_are_not_there(registry: Registry, publish: Publish, version: int) -> None:
    publish(activate=True)
    with pytest.raises(VersionNotFound):
        registry.activate("concise", version)
    with pytest.raises(AdapterNotFound):
        registry.resolve("concise", version, is_admin=True)
    assert registry.resolve("concise", is_admin=True).version == 1


def test_rollback_is_no_toggle(registry: Registry, publish: Publish) -> None:
    publish(activate=True)
    with pytest.raises(Conflict, match="no earlier"):
        registry.rollback("concise")
    publish(activate=True)
    assert registry.rollback("concise").version == 1
    with pytest.raises(Conflict, match="no earlier"):
        registry.rollback("concise")
    assert registry.resolve("concise", is_admin=True).version == 1


def test_activating_the_active_one_forgets_nothing(registry: Registry, publish: Publish) -> None:
    publish(activate=True)
    publish(activate=True)
    registry.activate("concise", 2)
    assert registry.rollback("concise").version == 1


def test_what_is_retired_is_gone_for_good(registry: Registry, publish: Publish) -> None:
    first = publish(activate=True)
    registry.retire("concise")
    for call in (
        lambda: registry.resolve("concise", is_admin=True),
        lambda: registry.resolve("concise", 1, is_admin=True),
        lambda: registry.describe("concise"),
        lambda: registry.activate("concise", 1),
        lambda: registry.retire("concise"),
    ):
        with pytest.raises(AdapterNotFound):
            call()
    with pytest.raises(Conflict, match="retired"):
        publish()
    assert registry.list_adapters() == []
    assert publish("other").engine_id > first.engine_id


def test_an_engine_id_is_never_used_again(
    registry: Registry, publish: Publish, tmp_path: Path
) -> None:
    """Even when the newest row is lost, as by a restored table."""
    lost = publish()
    connection = sqlite3.connect(tmp_path / "data" / "registry.sqlite3")
    connection.execute("delete from versions")
    connection.commit()
    connection.close()
    assert publish().engine_id > lost.engine_id


def test_who_may_use_it(registry: Registry, publish: Publish) -> None:
    for user in ("owner", "friend", "assigned", "stranger"):
        registry.accounts.create_user(user)
    publish(owner="owner", activate=True)
    registry.set_grants("concise", everyone=False, users=["friend", "friend"])
    registry.assign("assigned", "concise")

    def may(user: str | None) -> bool:
        visible = [v.ref for v in registry.usable(user_id=user)] == ["concise@1"]
        try:
            return registry.resolve("concise", user_id=user).version == 1 and visible
        except AdapterNotFound:
            assert not visible
            return False

    users = ["owner", "friend", "assigned", "stranger", "unknown", None]
    assert [may(user) for user in users] == [True, True, True, False, False, False]
    registry.set_grants("concise", everyone=True, users=[])
    assert all(may(user) for user in users)
    registry.set_grants("concise", everyone=False, users=[])
    assert [may(user) for user in users] == [True, False, True, False, False, False]


def test_unknown_and_forbidden_look_the_same(registry: Registry, publish: Publish) -> None:
    publish("hidden", activate=True)
    publish("inactive")
    publish("retired", activate=True)
    registry.retire("retired")
    said = set()
    for name in ("hidden", "inactive", "retired", "unknown", "\ud800", "a" * 10_000, "x\0y"):
        for version in (None, 1):
            with pytest.raises(AdapterNotFound) as caught:
                registry.resolve(name, version, user_id="stranger")
            said.add(str(caught.value).replace(name, "…"))
    assert len(said) == 1


def test_assignments(registry: Registry, publish: Publish) -> None:
    registry.accounts.create_user("alice")
    assert registry.assigned("alice") is None
    publish(activate=True)
    registry.assign("alice", "concise")
    made = registry.assigned("alice")
    assert made is not None
    assert made.ref == "concise@1"
    registry.retire("concise")
    with pytest.raises(AdapterNotFound):  # never the base in its place
        registry.assigned("alice")
    registry.assign("alice", None)
    assert registry.assigned("alice") is None


def test_only_what_exists_is_granted_owned_or_assigned(
    registry: Registry, publish: Publish
) -> None:
    with pytest.raises(UserNotFound):
        publish(owner="nobody")
    publish()
    registry.accounts.create_user("alice")
    with pytest.raises(UserNotFound):
        registry.set_grants("concise", everyone=False, users=["nobody"])
    with pytest.raises(UserNotFound):
        registry.assign("nobody", "concise")
    with pytest.raises(AdapterNotFound):
        registry.assign("alice", "unknown")


def test_a_new_user_of_an_old_name_inherits_nothing(registry: Registry, publish: Publish) -> None:
    registry.accounts.create_user("alice")
    publish("owned", owner="alice", activate=True)
    publish("granted", activate=True)
    publish("assigned", activate=True)
    registry.set_grants("granted", everyone=False, users=["alice"])
    registry.assign("alice", "assigned")
    assert len(registry.usable(user_id="alice")) == 3
    registry.accounts.delete_user("alice")
    registry.accounts.create_user("alice")
    assert registry.usable(user_id="alice") == []
    assert registry.assigned("alice") is None


def test_a_version_knows_where_it_came_from(
    registry: Registry, craft: Callable[..., Path], base: BaseModelInfo
) -> None:
    registry.publish("a", craft(fingerprint=base.fingerprint), base=base)
    registry.publish("a", craft(), base=base)
    first, second = registry.describe("a")["versions"]
    assert first["manifest"]["method"] == "bapo"
    assert second["manifest"] is None


def test_every_change_is_in_the_log(registry: Registry, publish: Publish, tmp_path: Path) -> None:
    registry.accounts.create_user("alice")
    publish(actor="k1", activate=True)
    publish(actor="k1")
    registry.activate("concise", 2, actor="k2")
    registry.rollback("concise", actor="k2")
    registry.set_grants("concise", everyone=True, users=[], actor="k2")
    registry.assign("alice", "concise", actor="k2")
    registry.retire("concise", actor="k2")
    assert audit(tmp_path)[1:] == [
        ("k1", "adapter.publish", "concise"),
        ("k1", "adapter.activate", "concise"),
        ("k1", "adapter.publish", "concise"),
        ("k2", "adapter.activate", "concise"),
        ("k2", "adapter.rollback", "concise"),
        ("k2", "adapter.grant", "concise"),
        ("k2", "user.assign", "alice"),
        ("k2", "adapter.retire", "concise"),
    ]


def test_a_registry_outlives_its_process(
    registry: Registry, publish: Publish, tmp_path: Path
) -> None:
    made = publish(activate=True)
    registry.close()
    again = open_registry(tmp_path / "data")
    assert again.resolve("concise", is_admin=True) == made
    again.close()


def test_the_migrations_make_what_the_code_expects(registry: Registry, tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'data' / 'registry.sqlite3'}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        assert connection.exec_driver_sql("pragma journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("pragma foreign_keys").scalar() == 1
    engine.dispose()


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "registry.sqlite3").write_bytes(b"something else entirely" * 100)
    with pytest.raises(StoreError, match="cannot be opened"):
        open_registry(tmp_path)


def test_a_database_from_the_future(registry: Registry, tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "data" / "registry.sqlite3")
    connection.execute("update alembic_version set version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match="newer"):
        open_registry(tmp_path / "data")


def test_a_database_that_goes_away_is_said(registry: Registry, tmp_path: Path) -> None:
    registry.close()
    path = tmp_path / "data" / "registry.sqlite3"
    path.write_bytes(b"something else entirely" * 1000)
    for name in ("registry.sqlite3-wal", "registry.sqlite3-shm"):
        path.with_name(name).unlink(missing_ok=True)
    with pytest.raises(StoreError, match="does not answer"):
        registry.resolve("concise", is_admin=True)
    with pytest.raises(StoreError, match="does not answer"):
        registry.accounts.create_user("alice")
