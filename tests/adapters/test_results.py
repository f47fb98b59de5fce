"""Results of an experiment: what users said of each arm's answers, on each kind of database."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from adapters.arms import Arm
from adapters.db import now
from adapters.errors import ExperimentNotFound
from adapters.feedback import Answer, AnswerRef
from adapters.registry import Registry
from adapters.results import results_of
from adapters.statistics import Proportion, two_mean_shares

ARMS = [Arm.of("plain", "base"), Arm.of("warm", "base", 2), Arm.of("cold", "base")]
USERS = [f"user-{number}" for number in range(30)]


@pytest.fixture
def tone(registry: Registry) -> Registry:
    """A running experiment with thirty users, none of whom has agreed to have texts kept."""
    for user in USERS:
        registry.accounts.create_user(user)
    registry.experiments.create("tone", ARMS)
    registry.experiments.enrol("tone", users=USERS)
    registry.experiments.start("tone")
    return registry


def said(registry: Registry, user: str, arm: str, *opinions: bool, at: Any = None) -> None:
    """The user rates an answer of the arm for each opinion."""
    at = at or now()
    until = at + timedelta(days=1)
    names = [f"{user}-{arm}-{at}-{number}" for number in range(len(opinions))]
    registry.feedback.keep(
        [Answer(user, name, 0, "base", None, "tone", arm, None, None, at, until) for name in names]
    )
    for name, good in zip(names, opinions, strict=True):
        registry.feedback.rate(user, AnswerRef(name), good)


def test_by_arm_and_by_user(tone: Registry) -> None:
    said(tone, "user-0", "plain", True, False, False, False)
    said(tone, "user-1", "plain", True)
    said(tone, "user-2", "plain", False)
    said(tone, "user-3", "warm", *[True] * 6)
    said(tone, "user-4", "warm", True, False)
    found = results_of(tone.engine, "tone")
    plain, warm, cold = found["arms"]
    assert (plain["raters"], plain["rated"], plain["liked"]) == (3, 6, 2)
    low, high = Proportion(2, 6).interval
    assert plain["win_rate"] == {"value": 2 / 6, "low": low, "high": high}
    assert plain["by_user"]["value"] == pytest.approx((0.25 + 1 + 0) / 3)
    assert (warm["raters"], warm["rated"], warm["liked"]) == (2, 8, 7)
    assert cold["win_rate"] == {"value": None, "low": 0.0, "high": 1.0}
    assert sum(arm["users"] for arm in found["arms"]) == len(USERS)
    first, second = found["comparisons"]
    expected = two_mean_shares([0.25, 1, 0], [1, 0.5])
    assert (first["arm"], first["against"], first["raters"]) == ("warm", "plain", 5)
    assert first["difference"] == pytest.approx(expected.difference)
    assert (first["low"], first["high"]) == (expected.low, expected.high)
    assert first["p_holm"] == min(1, 2 * first["p_value"])  # of two comparisons
    assert (second["low"], second["high"], second["p_value"]) == (-1, 1, 1)
    json.dumps(found, allow_nan=False)


def test_only_what_was_answered_since_its_start(tone: Registry) -> None:
    """An experiment of the same name, made anew, begins with nothing."""
    said(tone, "user-0", "plain", True)
    said(tone, "user-1", "plain", True, at=now() - timedelta(hours=1))
    assert results_of(tone.engine, "tone")["arms"][0]["rated"] == 1
    tone.experiments.stop("tone")
    assert results_of(tone.engine, "tone")["arms"][0]["rated"] == 1
    tone.experiments.delete("tone")
    with pytest.raises(ExperimentNotFound):
        results_of(tone.engine, "tone")
    tone.experiments.create("tone", ARMS)
    assert results_of(tone.engine, "tone")["arms"][0]["rated"] == 0
    tone.experiments.start("tone")
    assert results_of(tone.engine, "tone")["arms"][0]["rated"] == 0


def test_who_changes_his_mind_counts_once(tone: Registry) -> None:
    said(tone, "user-0", "plain", True)
    name = "user-0-plain"
    tone.feedback.keep(
        [
            Answer(
                *("user-0", name, 0, "base", None, "tone", "plain", None, None),
                *(now(), now() + timedelta(days=1)),
            )
        ]
    )
    for good in (True, False, False):
        tone.feedback.rate("user-0", AnswerRef(name), good)
    arm = results_of(tone.engine, "tone")["arms"][0]
    assert (arm["rated"], arm["liked"]) == (2, 1)


def test_who_is_moved_counts_in_his_first_arm(tone: Registry) -> None:
    """Whatever he says of the other arm's answers, and however often."""
    began = now()
    said(tone, "user-0", "plain", True, False, at=began + timedelta(seconds=1))
    said(tone, "user-1", "warm", True, at=began + timedelta(seconds=2))
    before = results_of(tone.engine, "tone")
    assert before["moved"] == 0
    said(tone, "user-0", "warm", *[False] * 5, at=began + timedelta(seconds=3))
    said(tone, "user-0", "cold", False, at=began + timedelta(seconds=4))
    assert results_of(tone.engine, "tone") == {**before, "moved": 1}
