"""Whose turn is it? Fair shares of the few adapters that the engine can run at once.

Owns the queues in front of the engine. One user has so many requests there and no more
(`UserPlaces`), or the whole batch would be his. At most `slots` different adapters run at a time
(`FairSlots`), those that wait are served in order of arrival, and no wait is longer than `max_wait`
seconds. Knows neither users, adapters nor the engine; a key is anything hashable.

vLLM alone lets requests for running adapters pass one that waits for a slot, for as long as they
keep coming. Here an adapter has a turn. While others wait and its turn is older than
`turn_seconds`, new requests for it stand in line, too; those that run finish, and the slot goes to
whoever came first.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from server.errors import AdapterBusy, TooManyAtOnce

K = TypeVar("K", bound=Hashable)


@dataclass
class _Turn:
    """An adapter that runs: since when, and how many requests."""

    began: float
    running: int


class FairSlots(Generic[K]):
    """`slots` places, one for each key that runs; used from one event loop only."""

    def __init__(
        self,
        slots: int,
        *,
        turn_seconds: float,
        max_wait: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._slots = slots
        self._turn_seconds = turn_seconds
        self._max_wait = max_wait
        self._clock = clock
        self._turns: dict[K, _Turn] = {}
        # In the order in which each key's first waiting request came.
        self._waiting: dict[K, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def turn(self, key: K) -> AsyncIterator[None]:
        """Inside, the key holds a slot. Raises AdapterBusy after `max_wait` seconds of waiting."""
        await self._enter(key)
        try:
            yield
        finally:
            self._leave(key)

    @property
    def running(self) -> int:
        """Keys that hold a slot."""
        return len(self._turns)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return sum(map(len, self._waiting.values()))

    async def _enter(self, key: K) -> None:
        if self._may_join(key):
            self._turns.setdefault(key, _Turn(self._clock(), 0)).running += 1
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append(place)
        try:
            async with asyncio.timeout(self._max_wait):
                await place
        except BaseException as error:
            if place.done() and not place.cancelled():
                self._leave(key)  # granted and given up in the same moment
            else:
                self._give_up(key, place)
            if isinstance(error, TimeoutError):
                raise AdapterBusy(
                    f"other adapters have been using the engine for {self._max_wait:g} seconds;"
                    " try again"
                ) from None
            raise

    def _may_join(self, key: K) -> bool:
        turn = self._turns.get(key)
        if turn is None:
            return not self._waiting and len(self._turns) < self._slots
        return not self._waiting or self._clock() - turn.began < self._turn_seconds

    def _leave(self, key: K) -> None:
        turn = self._turns[key]
        turn.running -= 1
        if not turn.running:
            del self._turns[key]
            self._serve_the_queue()

    def _give_up(self, key: K, place: asyncio.Future[None]) -> None:
        line = self._waiting.get(key, deque())
        if place not in line:
            return  # its line was served in the moment in which it gave up
        line.remove(place)
        if not line:
            del self._waiting[key]
            self._serve_the_queue()  # it may have stood in front of one that runs already

    def _serve_the_queue(self) -> None:
        """Give every free slot to the first in the queue, with all that wait for the same."""
        while self._waiting:
            key = next(iter(self._waiting))
            if key not in self._turns and len(self._turns) >= self._slots:
                return
            line = [place for place in self._waiting.pop(key) if not place.done()]
            if not line:
                continue
            turn = self._turns.setdefault(key, _Turn(self._clock(), 0))
            turn.began = self._clock()
            turn.running += len(line)
            for place in line:
                place.set_result(None)


@dataclass
class _Line:
    """One user's requests: those that run, behind the semaphore, and those in front of it."""

    places: asyncio.Semaphore
    requests: int = 0


class UserPlaces(Generic[K]):
    """`places` for each key; as many requests again wait, in order; used from one event loop."""

    def __init__(self, places: int, *, max_wait: float) -> None:
        self._places = places
        self._max_wait = max_wait
        self._lines: dict[K, _Line] = {}

    @asynccontextmanager
    async def place(self, key: K) -> AsyncIterator[None]:
        """Inside, the request may run. Raises TooManyAtOnce, at once or after `max_wait`."""
        line = self._lines.setdefault(key, _Line(asyncio.Semaphore(self._places)))
        if line.requests >= 2 * self._places:
            raise TooManyAtOnce(
                f"{line.requests} requests of yours are running or waiting: try again when some"
                " have ended"
            )
        line.requests += 1
        try:
            await self._wait(line)
            try:
                yield
            finally:
                line.places.release()
        finally:
            line.requests -= 1
            if not line.requests:
                del self._lines[key]

    async def _wait(self, line: _Line) -> None:
        if not line.places.locked():
            await line.places.acquire()  # at once, and without a clock
            return
        try:
            async with asyncio.timeout(self._max_wait):
                await line.places.acquire()
        except TimeoutError:
            raise TooManyAtOnce(
                f"{self._places} requests of yours have been running for {self._max_wait:g}"
                " seconds: try again when some have ended"
            ) from None
