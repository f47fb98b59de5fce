"""Who may use an adapter, and that nobody learns of what he may not use."""

from collections.abc import Callable

import pytest

from adapters.accounts import Role
from adapters.errors import AdapterNotFound, GroupNotFound, UserNotFound
from adapters.registry import AdapterVersion, Registry
from adapters.versions import Choice

Publish = Callable[..., AdapterVersion]


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
    assert registry.assigned("alice") == Choice(None)
    publish(activate=True)
    registry.assign("alice", "concise")
    made, arm = registry.assigned("alice")
    assert made is not None
    assert (made.ref, arm) == ("concise@1", None)
    registry.retire("concise")
    with pytest.raises(AdapterNotFound):  # never the base in its place
        registry.assigned("alice")
    registry.assign("alice", None)
    assert registry.assigned("alice") == Choice(None)


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
    assert registry.assigned("alice") == Choice(None)


def test_an_adapter_that_nobody_owns_is_not_anybodys(registry: Registry, publish: Publish) -> None:
    publish(activate=True)
    assert registry.usable(user_id=None) == []
    assert [v.ref for v in registry.usable(user_id=None, is_admin=True)] == ["concise@1"]


@pytest.mark.parametrize("user", ["", "x\0y", "\ud800", "a" * 10_000, "A"])
def test_users_that_cannot_be(registry: Registry, publish: Publish, user: str) -> None:
    publish("open", activate=True)
    publish("closed", activate=True)
    registry.set_grants("open", everyone=True, users=[])
    assert [v.ref for v in registry.usable(user_id=user)] == ["open@1"]
    assert registry.resolve("open", user_id=user).version == 1
    assert registry.assigned(user) == Choice(None)
    with pytest.raises(AdapterNotFound):
        registry.resolve("closed", user_id=user)
    with pytest.raises(UserNotFound):
        registry.assign(user, "open")
    with pytest.raises(UserNotFound):
        registry.accounts.delete_user(user)


def test_a_group_may_use_what_it_was_granted(registry: Registry, publish: Publish) -> None:
    for user in ("alice", "bob"):
        registry.accounts.create_user(user)
    registry.groups.create("staff")
    registry.groups.add("staff", ["alice"])
    publish(activate=True)
    registry.set_grants("concise", everyone=False, users=[], groups=["staff", "staff"])
    assert registry.describe("concise")["granted_to_groups"] == ["staff"]

    def may(user: str) -> bool:
        return [v.ref for v in registry.usable(user_id=user)] == ["concise@1"]

    assert [may("alice"), may("bob")] == [True, False]
    assert registry.resolve("concise", user_id="alice").version == 1
    registry.groups.add("staff", ["bob"])
    registry.groups.remove("staff", ["alice"])
    assert [may("alice"), may("bob")] == [False, True]
    registry.set_grants("concise", everyone=False, users=[])
    assert [may("alice"), may("bob")] == [False, False]
    with pytest.raises(GroupNotFound):
        registry.set_grants("concise", everyone=False, users=[], groups=["nobody"])


def test_a_new_group_of_an_old_name_inherits_nothing(registry: Registry, publish: Publish) -> None:
    registry.accounts.create_user("alice")
    registry.groups.create("staff")
    registry.groups.add("staff", ["alice"])
    publish(activate=True)
    registry.set_grants("concise", everyone=False, users=[], groups=["staff"])
    registry.groups.delete("staff")
    assert registry.usable(user_id="alice") == []
    registry.groups.create("staff")
    registry.groups.add("staff", ["alice"])
    assert registry.usable(user_id="alice") == []
    assert registry.groups.get("staff").members == ("alice",)


def test_the_log_names_all_that_a_deleted_user_leaves(registry: Registry, publish: Publish) -> None:
    registry.accounts.create_user("alice")
    key_id, _ = registry.accounts.create_key(Role.USER, "alice")
    registry.groups.create("staff")
    registry.groups.add("staff", ["alice"])
    registry.quotas.set("alice", max_versions=3)
    publish("owned", owner="alice")
    publish("granted")
    registry.set_grants("granted", everyone=False, users=["alice"])
    before = registry.audit(limit=1)[0].id
    registry.accounts.delete_user("alice", actor="root")
    told = {(e.action, e.subject) for e in registry.audit() if e.id > before}
    assert told == {
        ("adapter.disown", "owned"),
        ("adapter.ungrant", "granted"),
        ("group.remove", "staff"),
        ("key.revoke", key_id),
        ("quota.delete", "alice"),
        ("user.delete", "alice"),
    }
