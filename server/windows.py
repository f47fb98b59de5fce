"""Sliding windows of a minute, counted in this process's memory.

Owns two counters a key and what follows from them; takes a constant microsecond, holds a bounded
number of keys, and follows a clock that never jumps. The `limits` library, which counts in Redis
(`rates.py`), has the same windows in memory, too: it starts a thread after nearly every hit, which
walks over every key, and takes ten times as long.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

WINDOW = 60
"""Seconds."""
MOST_KEYS = 100_000


class Counted(NamedTuple):
    """As the library tells it."""

    previous: int
    previous_left: float
    """Seconds for which the last window still weighs; 0.0 where nothing was counted in it."""
    current: int
    current_left: float
    """Seconds until the running one weighs nothing."""


@dataclass(slots=True)
class _Counts:
    window: int
    previous: int = 0
    current: int = 0


class Windows:
    """Counts of the window that runs and of the one before it, of each key."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: OrderedDict[str, _Counts] = OrderedDict()

    def hit(self, key: str, cost: int, limit: float) -> bool:
        """Count `cost`, unless that were more than `limit`; says whether it did."""
        counts, left = self._at(key)
        used = counts.previous * left / WINDOW + counts.current
        if math.floor(used) + cost > limit:
            return False
        counts.current += cost
        return True

    def read(self, key: str) -> Counted:
        counts, left = self._at(key)
        return Counted(
            counts.previous, left if counts.previous else 0.0, counts.current, left + WINDOW
        )

    def __len__(self) -> int:
        return len(self._counts)

    def _at(self, key: str) -> tuple[_Counts, float]:
        """The key's counters now, and the seconds that its window has left."""
        now = self._clock() / WINDOW
        window = math.floor(now)
        counts = self._counts.get(key)
        if counts is None:
            counts = self._counts[key] = _Counts(window)
            if len(self._counts) > MOST_KEYS:
                self._counts.popitem(last=False)
        elif counts.window != window:
            counts.previous = counts.current if window == counts.window + 1 else 0
            counts.current, counts.window = 0, window
            self._counts.move_to_end(key)
        return counts, (window + 1 - now) * WINDOW
