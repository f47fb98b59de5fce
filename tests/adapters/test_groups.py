"""Groups: who is in them, and what is said of those that are not there."""

import pytest

from adapters.errors import AlreadyExists, GroupNotFound, InvalidName, UserNotFound
from adapters.groups import Groups
from adapters.registry import Registry


@pytest.fixture
def groups(registry: Registry) -> Groups:
    for user in ("alice", "bob", "carol"):
        registry.accounts.create_user(user)
    return registry.groups


def test_members_come_and_go(groups: Groups) -> None:
    assert groups.create("staff").members == ()
    groups.add("staff", ["carol", "alice", "alice"])
    groups.add("staff", ["bob", "alice"])
    assert groups.get("staff").members == ("alice", "bob", "carol")
    groups.remove("staff", ["bob", "nobody"])
    assert groups.get("staff").members == ("alice", "carol")
    groups.create("board")
    assert [(g.id, g.members) for g in groups.list()] == [
        ("board", ()),
        ("staff", ("alice", "carol")),
    ]
    groups.delete("staff")
    assert [group.id for group in groups.list()] == ["board"]


def test_a_deleted_user_is_in_no_group(registry: Registry, groups: Groups) -> None:
    groups.create("staff")
    groups.add("staff", ["alice"])
    registry.accounts.delete_user("alice")
    assert groups.get("staff").members == ()


def test_what_is_refused(groups: Groups) -> None:
    groups.create("staff")
    with pytest.raises(AlreadyExists, match="staff"):
        groups.create("staff")
    for name in ("Staff", "../x", "", "a\0b", "a" * 129):
        with pytest.raises(InvalidName, match="group"):
            groups.create(name)
        for call in (groups.get, groups.delete):
            with pytest.raises(GroupNotFound):
                call(name)
    with pytest.raises(UserNotFound):
        groups.add("staff", ["alice", "nobody"])
    assert groups.get("staff").members == ()  # all or none
    with pytest.raises(GroupNotFound):
        groups.add("unknown", ["alice"])
    with pytest.raises(GroupNotFound):
        groups.remove("unknown", ["alice"])


def test_every_change_is_in_the_log(registry: Registry, groups: Groups) -> None:
    groups.create("staff", actor="root")
    groups.add("staff", ["bob", "alice"], actor="root")
    groups.add("staff", ["bob"], actor="root")
    groups.remove("staff", ["bob"], actor="root")
    groups.remove("staff", ["bob"], actor="root")
    groups.delete("staff", actor="root")
    assert [(e.actor, e.action, e.details) for e in reversed(registry.audit("staff"))] == [
        ("root", "group.create", {}),
        ("root", "group.add", {"users": ["alice", "bob"]}),
        ("root", "group.remove", {"users": ["bob"]}),
        ("root", "group.delete", {}),
    ]
