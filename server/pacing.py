"""Work beside the steps of an engine that computes on this machine's cores, in pieces with rests.

Owns how much of a core an upload takes meanwhile. A step is done when its slowest thread is, some
hundred times a step, and whoever takes a core from one of them takes it from all: unpaced, the
checks of 80 MB were seen to make a step of 35 ms last 200 to 600. A lower priority is no way: the
steps leave it nothing at all. So each piece of work is followed by a rest, in proportion. The price
is an upload that takes about three times as long while somebody is being answered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from adapters.pace import giving_way

PIECE_SECONDS = 0.004
"""Of a core's time; a step is held up by about that."""
REST = 2
"""So many times as long as the piece. With 1 the longest gap was half as long again."""
RECEIVING_SECONDS_A_BYTE = 1.6e-9
"""What the event loop and a thread that writes need for it: 1.6 ms a MiB."""


class Pacing:
    """Rests for whoever works beside the steps; there are none while nobody needs the cores."""

    def __init__(self, cores_needed: Callable[[], bool]) -> None:
        self._cores_needed = cores_needed

    @contextmanager
    def beside_the_steps(self) -> Iterator[None]:
        """What this block does on this thread rests wherever it can `give_way`."""
        began = time.thread_time()

        def rest() -> None:
            nonlocal began
            worked = time.thread_time() - began
            if worked < PIECE_SECONDS:
                return
            if self._cores_needed():
                time.sleep(REST * worked)
            began = time.thread_time()

        with giving_way(rest):
            yield

    async def received(self, size: int) -> None:
        """Rest after so many bytes of a body."""
        if self._cores_needed():
            await asyncio.sleep(REST * RECEIVING_SECONDS_A_BYTE * size)
