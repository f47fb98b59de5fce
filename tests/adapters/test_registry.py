"""Versions are for ever, pointers move, and every move is in the log."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, Self

import pytest
from sqlalchemy import text

from adapters.base import BaseModelInfo
from adapters.db import writing
from adapters.errors import (
    AdapterNotFound,
    AlreadyExists,
    Conflict,
    IncompatibleBase,
    InvalidAdapter,
    InvalidName,
    StoreFull,
    VersionConflict,
    VersionNotFound,
)
from adapters.registry import AdapterVersion, Registry, open_registry
from adapters.validation import Limits

Publish = Callable[..., AdapterVersion]


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


def test_a_version_knows_where_it_came_from(
    registry: Registry, craft: Callable[..., Path], base: BaseModelInfo
) -> None:
    registry.publish("a", craft(fingerprint=base.fingerprint), base=base)
    registry.publish("a", craft(), base=base)
    told, derived = (v["manifest"] for v in registry.describe("a")["versions"])
    assert (told["method"], told["base"]["assumed"]) == ("bapo", False)
    assert (derived["method"], derived["base"]["assumed"]) == ("lora", True)
    assert derived["base"]["fingerprint"] == base.fingerprint


@pytest.mark.parametrize("odd", ["\0", "\ud800", "é" * 1000, 10**400, 1e300, [[[[]]]], {"": None}])
def test_a_manifest_may_say_anything(
    registry: Registry, craft: Callable[..., Path], base: BaseModelInfo, odd: object
) -> None:
    """What a database cannot keep is refused as an adapter, not blamed on the database."""
    folder = craft(fingerprint=base.fingerprint)
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data": {"odd": odd}}))
    try:
        registry.publish("a", folder, base=base)
    except InvalidAdapter:
        return
    assert registry.describe("a")["versions"][0]["manifest"]["data"] == {"odd": odd}


def test_an_engine_id_is_never_used_again(registry: Registry, publish: Publish) -> None:
    """Even when the newest row is lost, as by a restored table."""
    lost = publish()
    with writing(registry.engine) as session:
        session.execute(text("delete from versions"))
    assert publish().engine_id > lost.engine_id


def test_a_full_disk_leaves_nothing(
    registry: Registry,
    craft: Callable[..., Path],
    base: BaseModelInfo,
    tmp_path: Path,
    file_limit: Callable[[int], Any],
) -> None:
    """Full while the weights are written."""
    folder = craft()
    with file_limit(700), pytest.raises(StoreFull):
        registry.publish("concise", folder, base=base)
    assert registry.list_adapters() == []
    assert list((tmp_path / "data" / "store" / "drafts").iterdir()) == []
    assert registry.publish("concise", folder, base=base).version == 1


def test_an_adapter_stays_its_owners(registry: Registry, publish: Publish) -> None:
    for user in ("alice", "bob"):
        registry.accounts.create_user(user)
    publish(owner="alice")
    assert publish().version == publish(owner="alice").version - 1
    with pytest.raises(Conflict, match="does not belong to 'bob'"):
        publish(owner="bob")
    assert len(registry.describe("concise")["versions"]) == 3


@pytest.mark.parametrize("key", ["x" * 256, "a\0b", "\ud800"])
def test_keys_that_no_database_would_keep(publish: Publish, key: str) -> None:
    with pytest.raises(InvalidName, match="idempotency key"):
        publish(idempotency_key=key)


def test_rollback_walks_down_the_stack(registry: Registry, publish: Publish) -> None:
    for _ in range(4):
        publish()
    for version in (1, 3, 2, 3, 4):
        registry.activate("concise", version)
    walked = [registry.rollback("concise").version for _ in range(4)]
    assert walked == [3, 2, 3, 1]
    with pytest.raises(Conflict, match="no earlier"):
        registry.rollback("concise")
    assert registry.resolve("concise", is_admin=True).version == 1
    registry.activate("concise", 4)
    assert registry.rollback("concise").version == 1


def test_nothing_active_is_nothing_to_roll_back(registry: Registry, publish: Publish) -> None:
    publish()
    with pytest.raises(Conflict, match="no earlier"):
        registry.rollback("concise")


def test_rollback_compares_and_swaps(registry: Registry, publish: Publish) -> None:
    """Two who roll back the same mistake go one step, not two."""
    for _ in range(3):
        publish(activate=True)
    assert registry.rollback("concise", expected_version=3).version == 2
    with pytest.raises(VersionConflict, match="Version 2 of 'concise' is active, not 3"):
        registry.rollback("concise", expected_version=3)
    assert registry.resolve("concise", is_admin=True).version == 2


def test_every_change_is_in_the_log(registry: Registry, publish: Publish) -> None:
    registry.accounts.create_user("alice")
    publish(actor="k1", activate=True)
    publish(actor="k1")
    registry.activate("concise", 2, actor="k2")
    registry.rollback("concise", actor="k2")
    registry.set_grants("concise", everyone=True, users=[], actor="k2")
    registry.assign("alice", "concise", actor="k2")
    registry.retire("concise", actor="k2")
    told = [(e.actor, e.action, e.subject) for e in reversed(registry.audit())]
    assert told == [
        ("local", "user.create", "alice"),
        ("k1", "adapter.publish", "concise"),
        ("k1", "adapter.activate", "concise"),
        ("k1", "adapter.publish", "concise"),
        ("k2", "adapter.activate", "concise"),
        ("k2", "adapter.rollback", "concise"),
        ("k2", "adapter.grant", "concise"),
        ("k2", "user.assign", "alice"),
        ("k2", "adapter.retire", "concise"),
    ]
    moves = [e.details for e in registry.audit("concise") if "after" in e.details]
    assert [(m["before"], m["after"]) for m in moves] == [(1, None), (2, 1), (1, 2), (None, 1)]


def test_lists_in_pages(registry: Registry, publish: Publish) -> None:
    for name in ("c", "a", "b/x"):
        publish(name)
        registry.accounts.create_user(name[0])
    assert [row["adapter"] for row in registry.list_adapters(limit=2)] == ["a", "b/x"]
    assert [row["adapter"] for row in registry.list_adapters(after="b/x", limit=2)] == ["c"]
    assert [user.id for user in registry.accounts.list_users("a", 1)] == ["b"]
    assert len(registry.list_adapters(after="\0")) == len(registry.accounts.list_users("\0")) == 3


def test_times_are_in_utc(registry: Registry, publish: Publish) -> None:
    before = datetime.now(UTC)
    made = publish()
    after = datetime.now(UTC)
    for told in (registry.resolve("concise", 1, is_admin=True).created, registry.audit()[0].at):
        assert told.tzinfo is UTC
        assert before <= told <= after
    assert registry.resolve("concise", 1, is_admin=True) == made


def test_the_log_is_read_in_pages(registry: Registry) -> None:
    names = [f"user-{i}" for i in range(7)]
    for name in names:
        registry.accounts.create_user(name, actor="long" * 100)
    pages: list[list[str]] = []
    last = None
    while page := registry.audit(after=last, limit=3):
        pages.append([entry.subject for entry in page])
        last = page[-1].id
    assert [len(page) for page in pages] == [3, 3, 1]
    assert [name for page in pages for name in page] == names[::-1]
    assert [entry.subject for entry in registry.audit("user-2")] == ["user-2"]
    assert registry.audit("user-2\0") == []


def test_what_changes_nothing_is_not_in_the_log(registry: Registry, publish: Publish) -> None:
    publish(idempotency_key="k", seed=1, activate=True)
    before = registry.audit()
    publish(idempotency_key="k", seed=1, activate=True)
    registry.activate("concise", 1)
    with pytest.raises(VersionNotFound):
        registry.activate("concise", 2)
    assert registry.audit() == before


def test_a_registry_outlives_its_process(
    registry: Registry, publish: Publish, tmp_path: Path, database_url: str | None
) -> None:
    made = publish(activate=True)
    registry.close()
    again = open_registry(tmp_path / "data", database_url)
    assert again.resolve("concise", is_admin=True) == made
    again.close()


def test_a_clock_that_goes_backwards(
    registry: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times may be odd then; versions, the stack and the log keep their order."""
    days = iter(range(1000))

    class Backwards(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls(2030, 1, 1, tzinfo=tz) - timedelta(days=next(days))

    monkeypatch.setattr("adapters.db.datetime", Backwards)
    made = [publish(activate=True) for _ in range(3)]
    assert [version.version for version in made] == [1, 2, 3]
    assert made[0].created > made[1].created > made[2].created
    assert registry.resolve("concise", is_admin=True) == made[2]
    assert [registry.rollback("concise").version for _ in range(2)] == [2, 1]
    assert [v["version"] for v in registry.describe("concise")["versions"]] == [1, 2, 3]
