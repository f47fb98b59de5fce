"""A key proves who is calling, for as long as it is meant to."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from adapters.accounts import Accounts, Caller, Role
from adapters.db import Base, reading
from adapters.errors import AlreadyExists, InvalidName, KeyNotFound, UserNotFound
from adapters.registry import Registry


@pytest.fixture
def accounts(registry: Registry) -> Accounts:
    return registry.accounts


def test_users(accounts: Accounts) -> None:
    for name in ("bob", "alice"):
        accounts.create_user(name)
    with pytest.raises(AlreadyExists, match="alice"):
        accounts.create_user("alice")
    assert [user.id for user in accounts.list_users()] == ["alice", "bob"]
    accounts.delete_user("bob")
    assert [user.id for user in accounts.list_users()] == ["alice"]
    with pytest.raises(UserNotFound):
        accounts.delete_user("bob")


def test_bad_user_names(accounts: Accounts) -> None:
    with pytest.raises(InvalidName):
        accounts.create_user("../x")


def test_a_key_speaks_for_its_user(accounts: Accounts) -> None:
    accounts.create_user("alice")
    key_id, text = accounts.create_key(Role.USER, "alice")
    assert text.startswith(f"bapo_{key_id}_")
    assert accounts.verify_key(text) == Caller(Role.USER, "alice", key_id)


@pytest.mark.parametrize("role", [Role.SERVICE, Role.ADMIN])
def test_other_keys_speak_for_nobody(accounts: Accounts, role: Role) -> None:
    assert not accounts.has_key(role)
    key_id, text = accounts.create_key(role)
    assert accounts.has_key(role)
    assert accounts.verify_key(text) == Caller(role, None, key_id)


def test_a_user_key_needs_a_user(accounts: Accounts) -> None:
    with pytest.raises(InvalidName):
        accounts.create_key(Role.USER)
    with pytest.raises(UserNotFound):
        accounts.create_key(Role.USER, "nobody")


def test_what_is_no_key(accounts: Accounts) -> None:
    key_id, text = accounts.create_key(Role.ADMIN)
    _, other = accounts.create_key(Role.ADMIN)
    swapped = f"bapo_{key_id}_{other.split('_', 2)[2]}"
    wrong = ["", "bapo", "bapo__", f"bapo_{key_id}_", text[:-1], text + "x", text.upper()]
    for attempt in [*wrong, swapped, "bapo_é_x", "bapo_" + "0" * 10_000, text.replace("_", " ")]:
        assert accounts.verify_key(attempt) is None


def test_an_expired_key(accounts: Accounts) -> None:
    now = datetime.now(UTC)
    _, past = accounts.create_key(Role.ADMIN, expires=now - timedelta(seconds=1))
    _, future = accounts.create_key(Role.ADMIN, expires=now + timedelta(hours=1))
    assert accounts.verify_key(past) is None
    assert accounts.verify_key(future) is not None


def test_a_revoked_key(accounts: Accounts) -> None:
    key_id, text = accounts.create_key(Role.ADMIN)
    accounts.revoke_key(key_id)
    assert accounts.verify_key(text) is None
    with pytest.raises(KeyNotFound):
        accounts.revoke_key(key_id)


def test_a_deleted_user_has_no_keys(accounts: Accounts) -> None:
    accounts.create_user("alice")
    _, text = accounts.create_key(Role.USER, "alice")
    accounts.delete_user("alice")
    assert accounts.verify_key(text) is None
    accounts.create_user("alice")
    assert accounts.verify_key(text) is None


def test_secrets_are_nowhere(registry: Registry, tmp_path: Path) -> None:
    _, text = registry.accounts.create_key(Role.ADMIN)
    secret = text.split("_", 2)[2]
    with reading(registry.engine) as session:
        rows = [row for t in Base.metadata.sorted_tables for row in session.execute(select(t))]
    assert len(rows) == 2  # the key's and the log's
    assert not any(secret in str(row) for row in rows)
    files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert not any(secret.encode() in path.read_bytes() for path in files)


def test_every_change_is_in_the_log(registry: Registry) -> None:
    accounts = registry.accounts
    accounts.create_user("alice", actor="root")
    key_id, _ = accounts.create_key(Role.USER, "alice", actor="root")
    accounts.revoke_key(key_id, actor="root")
    accounts.delete_user("alice", actor="root")
    assert [(e.actor, e.action, e.subject) for e in reversed(registry.audit())] == [
        ("root", "user.create", "alice"),
        ("root", "key.create", key_id),
        ("root", "key.revoke", key_id),
        ("root", "user.delete", "alice"),
    ]


@pytest.mark.parametrize("key_id", ["", "x\0y", "\ud800", "0" * 15, "G" * 16])
def test_keys_that_cannot_be(accounts: Accounts, key_id: str) -> None:
    assert accounts.verify_key(f"bapo_{key_id}_secret") is None
    with pytest.raises(KeyNotFound):
        accounts.revoke_key(key_id)


def test_expiry_is_about_the_clock(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes back brings a key back until it has caught up, and nothing else."""
    begun = datetime.now(UTC)
    _, text = accounts.create_key(Role.ADMIN, expires=begun + timedelta(minutes=30))
    for hours, valid in ((0, True), (1, False), (-1, True), (1, False)):
        monkeypatch.setattr("adapters.accounts.now", lambda h=hours: begun + timedelta(hours=h))
        assert (accounts.verify_key(text) is not None) == valid
