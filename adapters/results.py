"""What comes out of an experiment: how often each arm's answers were liked, and which is better.

Owns counting ratings by arm and comparing the arms. Users are what was assigned, so users are what
is compared: of each user the share of his rated answers that he liked, of each arm the mean over
its users, all users alike. Only answers given since the experiment was started count, and of a user
whom a changed weight has moved only those of the arm that he rated an answer of first: so nobody
counts twice, and nobody is left out for having rated much. Importing it loads statsmodels (about a
second): import it where a result is asked for.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Engine, case, func, select
from sqlalchemy.orm import Session

from adapters.arms import Arm, Experiment, draw
from adapters.db import RatingRow, UserRow, reading
from adapters.experiments import read_experiments
from adapters.rows import experiment_row
from adapters.statistics import (
    CONFIDENCE,
    Comparison,
    Proportion,
    holm,
    mean_share,
    two_mean_shares,
)

Rated = Mapping[str, tuple[int, int]]
"""User → how many answers he rated, and how many of them he liked."""


class Ratings(NamedTuple):
    """`by_arm`, each user in one; `moved`, those who rated answers of other arms later."""

    by_arm: Mapping[str, Rated]
    moved: Collection[str]


def results_of(engine: Engine, experiment_id: str) -> dict[str, Any]:
    """Each arm's figures, and each arm against the first. Raises ExperimentNotFound.

    `win_rate` is of answers (Wilson's interval), `by_user` of users (Student's), `difference` of
    users' shares (Welch's test, Holm's correction where there are several arms to compare).
    """
    with reading(engine) as session:
        name = experiment_row(session, experiment_id).id
        experiment = read_experiments(session, [name])[name]
        users = session.scalars(select(UserRow.id).where(UserRow.experiment == name)).all()
        rated, moved = _ratings(session, experiment)
    control, *others = experiment.arms
    comparisons = [
        two_mean_shares(_shares(rated[control.name]), _shares(rated[a.name])) for a in others
    ]
    return {
        "experiment": name,
        "state": experiment.state,
        "confidence": CONFIDENCE,
        "moved": len(moved),
        "arms": [_arm(experiment, arm, users, rated[arm.name]) for arm in experiment.arms],
        "comparisons": [
            _comparison(control, arm, compared, adjusted)
            for arm, compared, adjusted in zip(
                others, comparisons, holm([c.p_value for c in comparisons]), strict=True
            )
        ],
    }


def _ratings(session: Session, experiment: Experiment) -> Ratings:
    """A user's answers count in the arm whose answer, of those he rated, was given first."""
    by_arm: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    counted, moved = set[str](), set[str]()
    if experiment.started is None:
        return Ratings(by_arm, moved)
    liked = func.sum(case((RatingRow.good, 1), else_=0))
    query = (
        select(RatingRow.arm, RatingRow.user_id, func.count(), liked)
        .where(RatingRow.experiment == experiment.id, RatingRow.answered >= experiment.started)
        .group_by(RatingRow.arm, RatingRow.user_id)
        .order_by(func.min(RatingRow.answered), RatingRow.user_id, RatingRow.arm)
    )
    for arm, user_id, number, good in session.execute(query):
        if user_id in counted:
            moved.add(user_id)
            continue
        counted.add(user_id)
        by_arm[arm][user_id] = number, int(good)
    return Ratings(by_arm, moved)


def _shares(rated: Rated) -> list[float]:
    return [liked / number for number, liked in rated.values()]


def _arm(experiment: Experiment, arm: Arm, users: Sequence[str], rated: Rated) -> dict[str, Any]:
    answers = Proportion(
        sum(liked for _, liked in rated.values()), sum(number for number, _ in rated.values())
    )
    low, high = answers.interval
    mean = mean_share(_shares(rated))
    return {
        "name": arm.name,
        "adapter": arm.serves,
        "users": sum(draw(experiment.id, experiment.arms, user) == arm for user in users),
        "raters": len(rated),
        "rated": answers.n,
        "liked": int(answers.hits),
        "win_rate": {"value": answers.rate if answers.n else None, "low": low, "high": high},
        "by_user": {"value": mean.value if mean.n else None, "low": mean.low, "high": mean.high},
    }


def _comparison(control: Arm, arm: Arm, found: Comparison, adjusted: float) -> dict[str, Any]:
    return {
        "arm": arm.name,
        "against": control.name,
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "p_value": found.p_value,
        "p_holm": adjusted,
        "raters": found.n,
    }
