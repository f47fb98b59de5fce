"""Keeps an engine running: starts it, notices its death, starts the next one.

Owns the engine's lives, the pause between them, and telling how it stands. Knows no vLLM: what runs
is anything that says whether it is alive and can be stopped. The first start may fail for good (a
wrong setting); once one has run, the supervisor tries for ever, since the next adapter, user or
hour may be better.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

import structlog

log = structlog.get_logger(__name__)

WATCH_SECONDS = 0.25
SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
STEADY_SECONDS = 60.0
"""An engine that ran so long has the shortest pause in front of its successor again."""
FIRST_GUESS = 15.0
"""Seconds that a start takes, as long as none has been seen."""


class Mortal(Protocol):
    """What can be supervised."""

    @property
    def alive(self) -> bool: ...

    def stop(self) -> None: ...

    def give_up(self) -> None:
        """Count as dead; whoever waits for something hears it."""


M = TypeVar("M", bound=Mortal)


class Supervisor(Generic[M]):
    """Holds the engine that runs now, None while there is none."""

    def __init__(self, start: Callable[[], Awaitable[M]]) -> None:
        self._start = start
        self._running: M | None = None
        self._is_over = False
        self._start_seconds = FIRST_GUESS
        self._next_try = self._born = time.monotonic()
        self._pause = SHORTEST_PAUSE
        self._failures, self._last_failure = 0, ""
        self.restarts = 0

    @property
    def running(self) -> M | None:
        """The living engine; None from the moment of its death to its successor's readiness."""
        engine = self._running
        return engine if engine is not None and engine.alive else None

    @property
    def outlook(self) -> str:
        """Why no engine runs, for people: the errors' names, whose words are for the log."""
        if not self._failures:
            return "the engine is starting; try again in a few seconds"
        pause = max(0.0, self._next_try - time.monotonic())
        tries = "once" if self._failures == 1 else f"{self._failures} times"
        when = f"in {pause:.0f} seconds" if pause else "under way"
        return (
            f"the engine has died and failed to start again {tries}, the last time by"
            f" {self._last_failure}, see the server's log; the next try is {when}"
        )

    @property
    def seconds_to_wait(self) -> float:
        """Until an engine may run: the rest of the pause and of a start; a second at least."""
        if self._running is not None:  # its death has not been noticed yet
            return self._pause + self._start_seconds
        return max(1.0, self._next_try + self._start_seconds - time.monotonic())

    async def run(self) -> None:
        """Start and watch until cancelled. Raises what the very first start raises."""
        await self._begin()
        try:
            while not self._is_over:
                await asyncio.sleep(WATCH_SECONDS)
                if self.running is None and not self._is_over:
                    log.error("engine_died", restarts=self.restarts)
                    await self._replace()
        finally:
            await self._bury()

    def end(self) -> None:
        """No further engine; whoever waits for this one hears that it stops. On the event loop."""
        self._is_over = True
        if self.running is not None:
            self.running.give_up()

    async def _begin(self) -> None:
        began = time.monotonic()
        self._running = await self._start()
        self._born = time.monotonic()
        self._start_seconds = self._born - began
        self._failures = 0

    async def _replace(self) -> None:
        """Try until another engine runs, after longer and longer pauses."""
        if time.monotonic() - self._born > STEADY_SECONDS:
            self._pause = SHORTEST_PAUSE
        while True:
            self._next_try = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            await self._bury()
            await asyncio.sleep(max(0.0, self._next_try - time.monotonic()))
            try:
                await self._begin()
            except Exception as error:
                self._failures += 1
                self._last_failure = type(error).__name__
                log.error("engine_failed_to_restart", tries=self._failures, exc_info=error)
            else:
                self.restarts += 1
                log.info("engine_restarted", restarts=self.restarts)
                return

    async def _bury(self) -> None:
        """Stop what is left of an engine; its ports and memory are free afterwards."""
        engine, self._running = self._running, None
        if engine is not None:
            try:
                await asyncio.to_thread(engine.stop)
            except Exception as error:
                log.warning("engine_not_stopped", exc_info=error)
