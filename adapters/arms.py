"""What an experiment is, and which of its arms a user is in.

Owns the split of users. Refuses tables (`experiments.py`) and what an arm's adapter is worth. The
split is weighted rendezvous hashing (Thaler and Ravishankar 1998; with weights as in Schindelhauer
and Schomaker 2005): every arm draws a number from experiment, arm and user, and the largest wins.
It needs no memory, so restarts and replicas agree; an arm that grows takes users from the others
and moves nobody between those, one that shrinks gives users away and takes none.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from adapters.names import BASE, AdapterRef, parse_ref

FEWEST_ARMS, MOST_ARMS = 2, 10
LARGEST_WEIGHT = 1_000_000


class State(StrEnum):
    """draft → running ⇄ stopped → concluded; only a running one splits users."""

    DRAFT = "draft"
    RUNNING = "running"
    STOPPED = "stopped"
    CONCLUDED = "concluded"


@dataclass(frozen=True, slots=True)
class Arm:
    """One of the things that are compared: the base, an adapter as it is active, or a version."""

    name: str
    adapter_id: str | None
    version: int | None
    weight: int

    @classmethod
    def of(cls, name: str, serves: str, weight: int = 1) -> "Arm":
        """The arm that serves `base`, `concise` or `concise@3`. Raises InvalidName."""
        if serves == BASE:
            return cls(name, None, None, weight)
        return cls(name, *parse_ref(serves), weight)

    @property
    def serves(self) -> str:
        """`base`, `concise` (whatever is active) or `concise@3`."""
        if self.adapter_id is None:
            return BASE
        return str(AdapterRef(self.adapter_id, self.version))


@dataclass(frozen=True, slots=True)
class Experiment:
    """Arms, and who gets which; `winner` is the arm that everyone gets after the conclusion."""

    id: str
    state: State
    arms: tuple[Arm, ...]
    winner: str | None
    created: datetime
    started: datetime | None
    ended: datetime | None

    def arm_of(self, user_id: str) -> Arm | None:
        """The arm that decides what this enrolled user gets; None: his own assignment does."""
        if self.state is State.RUNNING:
            return draw(self.id, self.arms, user_id)
        return next((arm for arm in self.arms if arm.name == self.winner), None)

    def label(self, arm: Arm) -> str | None:
        """`tone/warm` while it runs: what is answered after the end belongs to no experiment."""
        return f"{self.id}/{arm.name}" if self.state is State.RUNNING else None


def draw(experiment_id: str, arms: Sequence[Arm], user_id: str) -> Arm:
    """The user's arm; `arms` has one of a weight above zero."""
    return max(arms, key=lambda arm: _score(experiment_id, arm, user_id))


def _score(experiment_id: str, arm: Arm, user_id: str) -> float:
    """weight / -ln(u): the largest of these is an arm's with a probability as its weight."""
    text = f"{experiment_id}/{arm.name}/{user_id}"  # no name of the three holds a "/"
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
    uniform = ((number >> 12) + 0.5) / 2**52  # in (0, 1), both ends left out
    return -arm.weight / math.log(uniform)
