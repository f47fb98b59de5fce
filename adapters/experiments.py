"""Experiments: which there are, in which state, and who takes part.

Owns their rows and the moves between states. Refuses the split of users (`arms.py`), whether an arm
can be served (`startable.py`) and what comes out (`results.py`). Taking part lies over a user's own
assignment, which counts again whenever the experiment does not: before its start, while it is
stopped, after its end without a winner. What is compared never changes once it has begun; only the
weights do.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence

from sqlalchemy import ColumnElement, Engine, and_, delete, func, or_, select, update
from sqlalchemy.orm import Session

from adapters.arms import FEWEST_ARMS, LARGEST_WEIGHT, MOST_ARMS, Arm, Experiment, State
from adapters.audit import log
from adapters.db import ArmRow, ExperimentRow, MemberRow, UserRow, now, reading, writing
from adapters.errors import AlreadyExists, Conflict, InvalidName
from adapters.feedback import forget_experiment
from adapters.gate import Gate
from adapters.names import check_label
from adapters.rows import experiment_row, group_row, living_adapter, user_row, version_row
from adapters.startable import arms_past_the_gate, check_served


class Experiments:
    """Experiments in the registry's database; every method is one transaction."""

    def __init__(self, engine: Engine, gate: Gate | None = None) -> None:
        self._engine = engine
        self.gate = gate

    def create(
        self, experiment_id: str, arms: Sequence[Arm], *, actor: str = "local"
    ) -> Experiment:
        """A draft. Raises InvalidName, AlreadyExists, AdapterNotFound, VersionNotFound."""
        check_label(experiment_id)
        _check_arms(arms)
        with writing(self._engine) as session:
            if session.get(ExperimentRow, experiment_id) is not None:
                raise AlreadyExists(f"The experiment '{experiment_id}' exists already.")
            session.add(ExperimentRow(id=experiment_id, state=State.DRAFT, created=now()))
            session.flush()
            _replace_arms(session, experiment_id, arms)
            log(session, actor, "experiment.create", experiment_id, arms=_spelled(arms))
            return read_experiments(session, [experiment_id])[experiment_id]

    def set_arms(
        self, experiment_id: str, arms: Sequence[Arm], *, actor: str = "local"
    ) -> Experiment:
        """Replace a draft's arms; of one that has begun, the weights.

        Raises ExperimentNotFound, Conflict, and what `create` raises.
        """
        _check_arms(arms)
        with writing(self._engine) as session:
            experiment = _one(session, experiment_id)
            if experiment.state is State.CONCLUDED:
                raise Conflict(f"'{experiment_id}' is concluded: create another experiment.")
            if experiment.state is not State.DRAFT and _compared(arms) != _compared(
                experiment.arms
            ):
                raise Conflict(
                    f"'{experiment_id}' has begun, so only its weights can change: give every arm"
                    " with what it serves as before, or create another experiment."
                )
            _replace_arms(session, experiment_id, arms)
            log(session, actor, "experiment.arms", experiment_id, arms=_spelled(arms))
            return _one(session, experiment_id)

    def start(self, experiment_id: str, *, force: bool = False, actor: str = "local") -> Experiment:
        """Split its users from now on. Raises ExperimentNotFound, Conflict, GateRefused.

        `force` lets arms through that the gate refuses, and the audit log says so.
        """
        with writing(self._engine) as session:
            experiment = _one(session, experiment_id)
            _refuse(experiment, State.RUNNING, State.CONCLUDED)
            for arm in experiment.arms:
                check_served(session, experiment_id, arm)
            forced = arms_past_the_gate(session, self.gate, experiment, force=force)
            row = experiment_row(session, experiment_id)
            row.state, row.started = State.RUNNING, row.started or now()
            log(session, actor, "experiment.start", experiment_id, **forced)
            session.flush()
            return _one(session, experiment_id)

    def stop(self, experiment_id: str, *, actor: str = "local") -> Experiment:
        """Give everybody his own assignment back, for now. Raises ExperimentNotFound, Conflict."""
        with writing(self._engine) as session:
            _refuse(_one(session, experiment_id), State.DRAFT, State.STOPPED, State.CONCLUDED)
            experiment_row(session, experiment_id).state = State.STOPPED
            log(session, actor, "experiment.stop", experiment_id)
            session.flush()
            return _one(session, experiment_id)

    def conclude(
        self, experiment_id: str, winner: str | None = None, *, actor: str = "local"
    ) -> Experiment:
        """End it for good: all who take part get the winner, or their own assignment back.

        No gate stands here: the winner was served already, as in a rollback. Raises
        ExperimentNotFound, Conflict, InvalidName for a winner that is no arm.
        """
        with writing(self._engine) as session:
            experiment = _one(session, experiment_id)
            _refuse(experiment, State.DRAFT, State.CONCLUDED)
            arm = next((arm for arm in experiment.arms if arm.name == winner), None)
            if winner is not None and arm is None:
                names = ", ".join(one.name for one in experiment.arms)
                raise InvalidName(f"The winner must be one of the arms: {names}.")
            if arm is not None:
                check_served(session, experiment_id, arm)
            row = experiment_row(session, experiment_id)
            row.state, row.winner, row.ended = State.CONCLUDED, winner, now()
            log(session, actor, "experiment.conclude", experiment_id, winner=winner)
            session.flush()
            return _one(session, experiment_id)

    def delete(self, experiment_id: str, *, actor: str = "local") -> None:
        """Forget it and its ratings; who took part has his own assignment.

        Raises ExperimentNotFound, Conflict.
        """
        with writing(self._engine) as session:
            _refuse(_one(session, experiment_id), State.RUNNING)
            _enrol(session, UserRow.experiment == experiment_id, None, actor)
            forget_experiment(session, experiment_id)
            session.delete(experiment_row(session, experiment_id))
            log(session, actor, "experiment.delete", experiment_id)

    def enrol(
        self,
        experiment_id: str,
        *,
        users: Collection[str] = (),
        groups: Collection[str] = (),
        everyone: bool = False,
        actor: str = "local",
    ) -> int:
        """Have users take part, and say how many were added.

        `users` come from wherever they are. `groups` are their members of this moment, `everyone`
        all who have no assignment at this moment; who is in another experiment stays there.
        Raises ExperimentNotFound, UserNotFound, GroupNotFound, Conflict.
        """
        with writing(self._engine) as session:
            _refuse(_one(session, experiment_id), State.CONCLUDED)
            for user_id in users:
                user_row(session, user_id)
            for group_id in groups:
                group_row(session, group_id)
            elsewhere = or_(UserRow.experiment.is_(None), UserRow.experiment != experiment_id)
            added = 0
            for user_id in sorted(set(users)):
                him = and_(UserRow.id == user_id, elsewhere)
                added += _enrol(session, him, experiment_id, actor)
            free = UserRow.experiment.is_(None)
            if groups:
                members = select(MemberRow.user_id).where(MemberRow.group_id.in_(groups))
                added += _enrol(session, and_(free, UserRow.id.in_(members)), experiment_id, actor)
            if everyone:
                unassigned = and_(free, UserRow.assigned.is_(None))
                added += _enrol(session, unassigned, experiment_id, actor)
            return added

    def get(self, experiment_id: str) -> tuple[Experiment, int]:
        """The experiment, and how many users take part. Raises ExperimentNotFound."""
        with reading(self._engine) as session:
            taking_part = select(func.count()).where(UserRow.experiment == experiment_id)
            return _one(session, experiment_id), session.scalar(taking_part) or 0

    def list(self, after: str | None = None, limit: int | None = None) -> Sequence[Experiment]:
        """Experiments by name, all or a page; `after` the last name of the page before."""
        query = select(ExperimentRow.id).order_by(ExperimentRow.id).limit(limit)
        if after is not None and after.isprintable():
            query = query.where(ExperimentRow.id > after)
        with reading(self._engine) as session:
            return list(read_experiments(session, session.scalars(query).all()).values())


def read_experiments(
    session: Session, names: Collection[str] | None = None
) -> dict[str, Experiment]:
    """Experiments of these names, or all, in the order of their names."""
    query = select(ExperimentRow).order_by(ExperimentRow.id)
    of_arms = select(ArmRow).order_by(ArmRow.position)
    if names is not None:
        query = query.where(ExperimentRow.id.in_(names))
        of_arms = of_arms.where(ArmRow.experiment_id.in_(names))
    arms = defaultdict(list)
    for row in session.scalars(of_arms):
        arms[row.experiment_id].append(Arm(row.name, row.adapter_id, row.version, row.weight))
    return {
        row.id: Experiment(
            row.id,
            State(row.state),
            tuple(arms[row.id]),
            row.winner,
            row.created,
            row.started,
            row.ended,
        )
        for row in session.scalars(query)
    }


def _one(session: Session, experiment_id: str) -> Experiment:
    return read_experiments(session, [experiment_row(session, experiment_id).id])[experiment_id]


def _check_arms(arms: Sequence[Arm]) -> None:
    """Raises InvalidName for arms that make no experiment."""
    for arm in arms:
        check_label(arm.name)
        if not 0 <= arm.weight <= LARGEST_WEIGHT:
            raise InvalidName(f"The weight of '{arm.name}' must be between 0 and {LARGEST_WEIGHT}.")
    if not FEWEST_ARMS <= len(arms) <= MOST_ARMS:
        raise InvalidName(f"An experiment has {FEWEST_ARMS} to {MOST_ARMS} arms, not {len(arms)}.")
    if len({arm.name for arm in arms}) < len(arms):
        raise InvalidName("Two arms have the same name: give each its own.")
    if not any(arm.weight for arm in arms):
        raise InvalidName("Every arm has the weight 0: give at least one of them more.")


def _replace_arms(session: Session, experiment_id: str, arms: Sequence[Arm]) -> None:
    session.execute(delete(ArmRow).where(ArmRow.experiment_id == experiment_id))
    for position, arm in enumerate(arms):
        if arm.adapter_id is not None:
            living_adapter(session, arm.adapter_id)
            if arm.version is not None:
                version_row(session, arm.adapter_id, arm.version)
        row = ArmRow(experiment_id=experiment_id, name=arm.name, position=position)
        row.adapter_id, row.version, row.weight = arm.adapter_id, arm.version, arm.weight
        session.add(row)
    session.flush()


def _refuse(experiment: Experiment, *states: State) -> None:
    """Raises Conflict where the experiment is in one of these states."""
    if experiment.state in states:
        now_is = "a draft" if experiment.state is State.DRAFT else experiment.state.value
        raise Conflict(f"The experiment '{experiment.id}' is {now_is}, so this cannot be done.")


def _enrol(
    session: Session, which: ColumnElement[bool], experiment_id: str | None, actor: str
) -> int:
    """Move these users to an experiment or to none; a line of the log for each."""
    users = session.execute(select(UserRow.id, UserRow.experiment).where(which)).all()
    session.execute(
        update(UserRow).where(which).values(experiment=experiment_id),
        execution_options={"synchronize_session": False},
    )
    for user_id, before in users:
        log(session, actor, "user.enrol", user_id, before=before, after=experiment_id)
    return len(users)


def _compared(arms: Sequence[Arm]) -> dict[str, str]:
    return {arm.name: arm.serves for arm in arms}


def _spelled(arms: Sequence[Arm]) -> dict[str, str]:
    """For the log."""
    return {arm.name: f"{arm.serves} ×{arm.weight}" for arm in arms}
