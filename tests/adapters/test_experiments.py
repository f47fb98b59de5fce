"""Experiments: states, who takes part, and what a user gets in each of them."""

from collections.abc import Callable

import pytest

from adapters.arms import Arm, Experiment, State
from adapters.errors import (
    AdapterNotFound,
    AlreadyExists,
    Conflict,
    ExperimentNotFound,
    InvalidName,
    UserNotFound,
    VersionNotFound,
)
from adapters.registry import AdapterVersion, Registry
from adapters.versions import Choice
from adapters.view import RegistryView

Publish = Callable[..., AdapterVersion]

ARMS = [Arm.of("control", "base"), Arm.of("warm", "warm"), Arm.of("first", "warm@1")]


@pytest.fixture
def tone(registry: Registry, publish: Publish) -> Experiment:
    """A draft over the base, an adapter's active second version, and its first."""
    for _ in range(2):
        publish("warm", activate=True)
    publish("own", activate=True)
    for number in range(12):
        registry.accounts.create_user(f"user-{number}")
    return registry.experiments.create("tone", ARMS, actor="root")


def everyones(registry: Registry) -> dict[str, Choice]:
    return {u.id: registry.assigned(u.id) for u in registry.accounts.list_users()}


def spelled(choice: Choice) -> tuple[str, str | None]:
    return (choice.version.ref if choice.version else "base", choice.arm)


def test_a_life(registry: Registry, tone: Experiment) -> None:
    registry.assign("user-1", "own")
    assert registry.experiments.enrol("tone", users=["user-1"]) == 1
    assert registry.experiments.enrol("tone", everyone=True) == 11
    assert registry.experiments.enrol("tone", everyone=True) == 0
    own = everyones(registry)
    assert {spelled(choice) for choice in own.values()} == {("base", None), ("own@1", None)}

    assert registry.experiments.start("tone").state is State.RUNNING
    split = everyones(registry)
    assert {spelled(choice) for choice in split.values()} == {
        ("base", "tone/control"),
        ("warm@2", "tone/warm"),
        ("warm@1", "tone/first"),
    }
    assert registry.experiments.stop("tone").state is State.STOPPED
    assert everyones(registry) == own
    registry.experiments.start("tone")
    assert everyones(registry) == split

    ended = registry.experiments.conclude("tone", "first")
    assert (ended.state, ended.winner) == (State.CONCLUDED, "first")
    assert {spelled(choice) for choice in everyones(registry).values()} == {("warm@1", None)}
    registry.assign("user-2", "own")  # and so out of it
    assert spelled(registry.assigned("user-2")) == ("own@1", None)
    registry.experiments.delete("tone")
    assert {**everyones(registry), "user-2": None} == {**own, "user-2": None}
    assert registry.experiments.list() == []


def test_the_view_agrees_in_every_state(registry: Registry, tone: Experiment) -> None:
    view = RegistryView(registry)

    def agree() -> None:
        view.refresh()
        assert {user: view.assigned(user) for user in everyones(registry)} == everyones(registry)

    experiments = registry.experiments
    experiments.enrol("tone", everyone=True)
    agree()
    experiments.start("tone")
    agree()
    assert len({view.assigned(user).arm for user in everyones(registry)}) == 3
    heavy = [Arm.of("control", "base", 0), *ARMS[1:]]
    experiments.set_arms("tone", heavy)
    agree()
    experiments.conclude("tone")
    agree()
    experiments.delete("tone")
    agree()


def test_an_arm_that_cannot_be_served_is_an_error_and_nothing_else(
    registry: Registry, tone: Experiment
) -> None:
    view = RegistryView(registry)
    registry.experiments.enrol("tone", everyone=True)
    registry.experiments.start("tone")
    arms = {user: choice.arm for user, choice in everyones(registry).items()}
    registry.retire("warm")
    view.refresh()
    for user, arm in arms.items():
        for look in (registry.assigned, view.assigned):
            if arm == "tone/control":
                assert look(user) == Choice(None, arm)
            else:
                with pytest.raises(AdapterNotFound, match="warm"):
                    look(user)
    registry.experiments.stop("tone")
    with pytest.raises(Conflict, match="retired"):
        registry.experiments.start("tone")
    with pytest.raises(Conflict, match="retired"):
        registry.experiments.conclude("tone", "warm")


def test_an_arm_gives_no_right_to_name_the_adapter(registry: Registry, tone: Experiment) -> None:
    registry.experiments.enrol("tone", everyone=True)
    registry.experiments.start("tone")
    assert len({choice.version for choice in everyones(registry).values()}) == 3
    for user in everyones(registry):
        assert registry.usable(user_id=user) == []


def test_groups_take_part_as_they_are_and_nobody_is_taken_from_another(
    registry: Registry, tone: Experiment
) -> None:
    registry.experiments.create("size", ARMS)
    registry.groups.create("staff")
    registry.groups.add("staff", ["user-0", "user-1", "user-2"])
    registry.experiments.enrol("size", users=["user-0"])
    assert registry.experiments.enrol("tone", groups=["staff"]) == 2
    registry.groups.add("staff", ["user-3"])
    assert registry.experiments.get("tone")[1] == 2
    assert registry.experiments.enrol("tone", users=["user-0", "user-0"]) == 1  # by name he moves
    assert registry.experiments.get("size")[1] == 0
    registry.accounts.delete_user("user-0")
    registry.accounts.create_user("user-0")
    assert registry.experiments.get("tone")[1] == 2  # a name inherits nothing


def test_once_begun_only_weights_change(registry: Registry, tone: Experiment) -> None:
    registry.experiments.set_arms("tone", ARMS[:2])
    registry.experiments.start("tone")
    heavier = [Arm.of("control", "base", 5), Arm.of("warm", "warm", 1)]
    assert registry.experiments.set_arms("tone", heavier).arms == tuple(heavier)
    for other in (ARMS, [Arm.of("control", "base"), Arm.of("warm", "warm@1")]):
        with pytest.raises(Conflict, match="only its weights"):
            registry.experiments.set_arms("tone", other)


@pytest.mark.parametrize(
    ("arms", "error"),
    [
        ([], InvalidName),
        (ARMS[:1], InvalidName),
        ([Arm.of(f"arm-{n}", "base") for n in range(11)], InvalidName),
        ([ARMS[0], ARMS[0]], InvalidName),
        ([Arm.of("a", "base", 0), Arm.of("b", "warm", 0)], InvalidName),
        ([Arm.of("a", "base", -1), Arm.of("b", "warm")], InvalidName),
        ([Arm.of("a/b", "base"), Arm.of("b", "warm")], InvalidName),
        ([Arm.of("a", "base"), Arm.of("b", "cold")], AdapterNotFound),
        ([Arm.of("a", "base"), Arm.of("b", "warm@9")], VersionNotFound),
    ],
)
def test_arms_that_make_no_experiment(
    registry: Registry, tone: Experiment, arms: list[Arm], error: type[Exception]
) -> None:
    with pytest.raises(error):
        registry.experiments.create("other", arms)
    with pytest.raises(error):
        registry.experiments.set_arms("tone", arms)
    assert [one.id for one in registry.experiments.list()] == ["tone"]
    assert registry.experiments.get("tone")[0].arms == tuple(ARMS)


def test_what_is_refused(registry: Registry, tone: Experiment) -> None:
    experiments = registry.experiments
    call: Callable[[str], object]
    for name in ("", "To ne", "a/b", "a\0b", "a" * 64):
        with pytest.raises(InvalidName):
            experiments.create(name, ARMS)
        asked: list[Callable[[str], object]]
        asked = [experiments.get, experiments.start, experiments.stop, experiments.delete]
        for ask in asked:
            with pytest.raises(ExperimentNotFound):
                ask(name)
    with pytest.raises(AlreadyExists):
        experiments.create("tone", ARMS)
    for call in (experiments.stop, experiments.conclude):
        with pytest.raises(Conflict, match="a draft"):
            call("tone")
    with pytest.raises(UserNotFound):
        experiments.enrol("tone", users=["user-1", "nobody"])
    assert experiments.get("tone")[1] == 0  # all or none
    experiments.start("tone")
    for call in (experiments.start, experiments.delete):
        with pytest.raises(Conflict, match="running"):
            call("tone")
    with pytest.raises(InvalidName, match="control, warm, first"):
        experiments.conclude("tone", "cold")
    experiments.conclude("tone")
    for call in (experiments.start, experiments.stop, experiments.conclude):
        with pytest.raises(Conflict, match="concluded"):
            call("tone")
    with pytest.raises(Conflict):
        experiments.enrol("tone", users=["user-1"])


def test_every_change_is_in_the_log(registry: Registry, tone: Experiment) -> None:
    registry.experiments.enrol("tone", users=["user-1"], actor="root")
    registry.experiments.start("tone", actor="root")
    registry.experiments.conclude("tone", "warm", actor="root")
    registry.experiments.delete("tone", actor="root")
    actions = [entry.action for entry in reversed(registry.audit("tone"))]
    assert actions == [f"experiment.{what}" for what in ("create", "start", "conclude", "delete")]
    moves = [entry.details for entry in registry.audit("user-1")][:2]
    assert moves == [{"before": "tone", "after": None}, {"before": None, "after": "tone"}]
