"""The split of users: by weight, the same everywhere, and moved as little as possible."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from adapters.arms import Arm, draw
from adapters.errors import InvalidName

ROOT = Path(__file__).resolve().parents[2]
USERS = [f"user-{number}" for number in range(20_000)]


def arms(**weights: int) -> list[Arm]:
    return [Arm(name, None, None, weight) for name, weight in weights.items()]


def split(**weights: int) -> dict[str, str]:
    return {user: draw("tone", arms(**weights), user).name for user in USERS}


def test_shares_are_as_the_weights() -> None:
    """20,000 users: the standard deviation of a share is at most 0.36 points."""
    counts = Counter(split(a=1, b=2, c=1, d=0).values())
    assert counts["d"] == 0
    for name, share in (("a", 0.25), ("b", 0.5), ("c", 0.25)):
        assert abs(counts[name] / len(USERS) - share) < 0.015, counts


def test_only_a_grown_arm_takes_users() -> None:
    before, after = split(a=1, b=1, c=2), split(a=2, b=1, c=2)
    moved = [user for user in USERS if before[user] != after[user]]
    assert {after[user] for user in moved} == {"a"}
    assert abs(len(moved) / len(USERS) - (2 / 5 - 1 / 4)) < 0.015  # as many as a's share grew


def test_order_and_a_common_factor_mean_nothing() -> None:
    assert split(a=1, b=3) == split(b=3, a=1) == split(a=20, b=60)


def test_another_process_draws_the_same() -> None:
    """Python's own hash of a text would not."""
    code = (
        "from adapters.arms import Arm, draw\n"
        "arms = [Arm(n, None, None, w) for n, w in (('a', 1), ('b', 2))]\n"
        "print(*(draw('tone', arms, f'user-{n}').name for n in range(200)))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    here = split(a=1, b=2)
    assert told.stdout.split() == [here[user] for user in USERS[:200]]


def test_experiments_are_split_independently() -> None:
    both = arms(a=1, b=1)
    same = sum(draw("tone", both, u) == draw("size", both, u) for u in USERS)
    assert abs(same / len(USERS) - 0.5) < 0.015


def test_what_an_arm_serves() -> None:
    for serves in ("base", "alice/concise", "alice/concise@3"):
        assert Arm.of("a", serves).serves == serves
    with pytest.raises(InvalidName):
        Arm.of("a", "concise@0")
