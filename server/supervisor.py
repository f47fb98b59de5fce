"""Keeps an engine running: starts it, notices its death, starts the next one.

Owns the engine's lives and the pause between them. Knows no vLLM: what runs is anything that says
whether it is alive and can be stopped. The first start may fail for good (a wrong setting); once
one has run, the supervisor tries for ever, since the next adapter, user or hour may be better.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

import structlog

log = structlog.get_logger(__name__)

WATCH_SECONDS = 0.25
SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
STEADY_SECONDS = 60.0
"""An engine that ran so long has the shortest pause in front of its successor again."""


class Mortal(Protocol):
    """What can be supervised."""

    @property
    def alive(self) -> bool: ...

    def stop(self) -> None: ...


M = TypeVar("M", bound=Mortal)


class Supervisor(Generic[M]):
    """Holds the engine that runs now, None while there is none."""

    def __init__(self, start: Callable[[], Awaitable[M]]) -> None:
        self._start = start
        self._running: M | None = None
        self.restarts = 0

    @property
    def running(self) -> M | None:
        """The living engine; None from the moment of its death to its successor's readiness."""
        engine = self._running
        return engine if engine is not None and engine.alive else None

    async def run(self) -> None:
        """Start and watch until cancelled. Raises what the very first start raises."""
        self._running = await self._start()
        loop = asyncio.get_running_loop()
        pause, born = SHORTEST_PAUSE, loop.time()
        try:
            while True:
                await asyncio.sleep(WATCH_SECONDS)
                if self.running is not None:
                    continue
                if loop.time() - born > STEADY_SECONDS:
                    pause = SHORTEST_PAUSE
                await self._bury()
                log.error("engine_died", restart_in_seconds=pause, restarts=self.restarts)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                await self._try_again()
                born = loop.time()
        finally:
            await self._bury()

    async def _try_again(self) -> None:
        try:
            self._running = await self._start()
        except Exception as error:
            log.error("engine_failed_to_restart", exc_info=error)
        else:
            self.restarts += 1
            log.info("engine_restarted", restarts=self.restarts)

    async def _bury(self) -> None:
        """Stop what is left of an engine; its ports and memory are free afterwards."""
        engine, self._running = self._running, None
        if engine is not None:
            try:
                await asyncio.to_thread(engine.stop)
            except Exception as error:
                log.warning("engine_not_stopped", exc_info=error)
