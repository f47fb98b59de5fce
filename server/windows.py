"""Sliding windows of a minute, in this process's memory, for the `limits` library.

Owns a storage in the library's own interface. The library's memory storage starts a thread after
nearly every hit and walks over every key in it; this one takes a constant few microseconds, holds
a bounded number of keys, and follows a clock that never jumps.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from limits.aio.storage import SlidingWindowCounterSupport, Storage

MOST_KEYS = 100_000


@dataclass(slots=True)
class _Counts:
    window: int
    previous: int = 0
    current: int = 0


class WindowsInMemory(Storage, SlidingWindowCounterSupport):
    """Two counters a key: of the window that runs, and of the one before it."""

    STORAGE_SCHEME = None

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._counts: OrderedDict[str, _Counts] = OrderedDict()

    async def acquire_sliding_window_entry(
        self, key: str, limit: int, expiry: int, amount: int = 1
    ) -> bool:
        counts, left = self._at(key, expiry)
        used = counts.previous * left / expiry + counts.current
        if math.floor(used) + amount > limit:
            return False
        counts.current += amount
        return True

    async def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        counts, left = self._at(key, expiry)
        return counts.previous, left if counts.previous else 0.0, counts.current, left + expiry

    async def clear_sliding_window(self, key: str, expiry: int) -> None:
        self._counts.pop(key, None)

    def _at(self, key: str, expiry: int) -> tuple[_Counts, float]:
        """The key's counters now, and the seconds that its window has left."""
        now = self._clock() / expiry
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
        return counts, (window + 1 - now) * expiry

    # What the library's interface wants besides, for strategies that are not used here.

    @property
    def base_exceptions(self) -> type[Exception]:
        return KeyError

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        counts, _ = self._at(key, expiry)
        counts.current += amount
        return counts.current

    async def get(self, key: str) -> int:
        counts = self._counts.get(key)
        return counts.current if counts else 0

    async def get_expiry(self, key: str) -> float:
        return self._clock()

    async def check(self) -> bool:
        return True

    async def reset(self) -> int | None:
        count = len(self._counts)
        self._counts.clear()
        return count

    async def clear(self, key: str) -> None:
        self._counts.pop(key, None)
