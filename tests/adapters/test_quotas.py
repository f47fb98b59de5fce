"""An owner keeps no more than he may, however he asks."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapters.base import BaseModelInfo
from adapters.errors import InvalidName, NotFound, QuotaExceeded, UserNotFound
from adapters.quotas import Quota, Usage
from adapters.registry import AdapterVersion, Registry

Publish = Callable[..., AdapterVersion]


@pytest.fixture(autouse=True)
def users(registry: Registry) -> None:
    for user in ("alice", "bob"):
        registry.accounts.create_user(user)


def test_versions_are_bounded(registry: Registry, publish: Publish) -> None:
    registry.quotas.set("alice", max_versions=2)
    publish("a", owner="alice")
    publish("b", owner="alice")
    for name in ("a", "c"):
        with pytest.raises(QuotaExceeded, match="'alice' may keep 2 versions and has 2"):
            publish(name, owner="alice")
    with pytest.raises(QuotaExceeded):  # his, whoever publishes it
        publish("a")
    assert len(registry.list_adapters()) == 2
    publish("c", owner="bob")
    for _ in range(3):
        publish("nobodys")


def test_bytes_are_bounded(registry: Registry, publish: Publish) -> None:
    size = publish("a", owner="alice").bytes
    registry.quotas.set("alice", max_bytes=3 * size - 1)
    publish("a")
    with pytest.raises(QuotaExceeded, match="no room"):
        publish("a")
    registry.quotas.set("alice", max_bytes=3 * size)
    publish("a")
    assert registry.quotas.of("alice")[1] == Usage(versions=3, bytes=3 * size)


def test_what_is_refused_leaves_no_bytes(registry: Registry, publish: Publish) -> None:
    registry.quotas.set("alice", max_versions=0)
    with pytest.raises(QuotaExceeded):
        publish(owner="alice")
    assert list(registry.store.stored()) == []


def test_what_is_retired_does_not_count(registry: Registry, publish: Publish) -> None:
    registry.quotas.set("alice", max_versions=1)
    publish("a", owner="alice")
    registry.retire("a")
    assert registry.quotas.of("alice")[1] == Usage(0, 0)
    publish("b", owner="alice")


def test_everybody_without_bounds_of_his_own(registry: Registry, publish: Publish) -> None:
    quotas = registry.quotas
    quotas.set("*", max_versions=1)
    quotas.set("alice", max_versions=2)
    assert quotas.list() == [Quota("*", 1), Quota("alice", 2)]
    assert quotas.of("bob") == (Quota("bob", 1), Usage(0, 0))
    publish("b", owner="bob")
    with pytest.raises(QuotaExceeded):
        publish("b")
    for _ in range(2):
        publish("a", owner="alice")
    quotas.delete("alice")
    with pytest.raises(QuotaExceeded, match="may keep 1 versions and has 2"):
        publish("a")
    quotas.delete("*")
    publish("a")
    quotas.set("bob")  # a row without bounds
    publish("b")


def test_a_retry_of_the_last_one_is_not_refused(registry: Registry, publish: Publish) -> None:
    registry.quotas.set("alice", max_versions=1)
    made = publish(owner="alice", seed=1, idempotency_key="k")
    assert publish(owner="alice", seed=1, idempotency_key="k") == made


def test_many_at_once_do_not_slip_through(
    registry: Registry, craft: Callable[..., Path], base: BaseModelInfo
) -> None:
    registry.quotas.set("alice", max_versions=3)
    folders = [craft(seed=seed) for seed in range(8)]

    def one(number: int) -> bool:
        try:
            registry.publish(f"a-{number % 2}", folders[number], base=base, owner="alice")
        except QuotaExceeded:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(one, range(8))) == 3
    assert registry.quotas.of("alice")[1].versions == 3


@pytest.mark.parametrize(
    ("versions", "size"), [(-1, None), (2**31, None), (None, -1), (None, 2**63)]
)
def test_bounds_that_are_none(registry: Registry, versions: int | None, size: int | None) -> None:
    with pytest.raises(InvalidName, match="between 0 and"):
        registry.quotas.set("alice", max_versions=versions, max_bytes=size)
    widest = registry.quotas.set("alice", max_versions=2**31 - 1, max_bytes=2**63 - 1)
    assert registry.quotas.of("alice")[0] == widest


def test_quotas_of_nobody(registry: Registry) -> None:
    for name in ("nobody", "x\0y"):
        with pytest.raises(UserNotFound):
            registry.quotas.set(name, max_versions=1)
        with pytest.raises(UserNotFound):
            registry.quotas.of(name)
    with pytest.raises(NotFound, match="no quota"):
        registry.quotas.delete("alice")
    with pytest.raises(NotFound):
        registry.quotas.delete("*")


def test_every_change_is_in_the_log(registry: Registry) -> None:
    registry.quotas.set("*", max_versions=5, actor="root")
    registry.quotas.delete("*", actor="root")
    assert [(e.actor, e.action, e.details) for e in reversed(registry.audit("*"))] == [
        ("root", "quota.set", {"max_versions": 5, "max_bytes": None}),
        ("root", "quota.delete", {}),
    ]
