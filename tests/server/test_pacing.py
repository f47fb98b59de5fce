"""Work beside the steps rests in proportion, on its own thread and only while it must."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from pathlib import Path

from adapters.base import POCKET, describe_base
from adapters.pace import give_way, giving_way
from adapters.registry import open_registry
from server.pacing import PIECE_SECONDS, REST, Pacing

from plain_adapter import plain_adapter


def work(pieces: int) -> float:
    """Use a core for so many pieces, giving way often; returns the core's seconds."""
    began = time.thread_time()
    while (used := time.thread_time() - began) < pieces * PIECE_SECONDS:
        sum(range(1000))
        give_way()
    return used


def test_it_rests_while_the_cores_are_needed() -> None:
    began = time.monotonic()
    with Pacing(lambda: True).beside_the_steps():
        used = work(5)
    # The last piece may not be whole, and is not rested for.
    assert time.monotonic() - began >= used + REST * (used - 2 * PIECE_SECONDS)


def test_it_does_not_rest_otherwise() -> None:
    asked: list[bool] = []

    def needed() -> bool:
        asked.append(True)
        return False

    with Pacing(needed).beside_the_steps():
        work(3)
    inside = len(asked)
    work(3)  # outside of it nobody asks
    assert inside == len(asked) > 0


def test_every_long_part_of_a_publish_gives_way(tmp_path: Path) -> None:
    """Rewriting, measuring and hashing: each is seen among the callers."""
    callers: set[str] = set()

    def note() -> None:
        callers.add(sys._getframe(2).f_code.co_filename.rpartition("/")[2])

    base = describe_base(POCKET)
    folder = plain_adapter(tmp_path / "adapter", base)
    with giving_way(note), closing(open_registry(tmp_path / "data")) as registry:
        registry.publish("anne", folder, base=base)
    assert callers == {"normalise.py", "magnitudes.py", "artifact.py"}
