"""Runs the application under uvicorn until a signal or the engine's failure ends it.

Owns the event loop, the end of it and the exit code; `app.py` owns what is served. A stop that was
asked for takes no new requests and lets the running ones finish; those that take too long end with
an error event, and the exit code is 0 all the same. A second SIGTERM changes nothing; a second
Ctrl-C ends them now, and a third one waits for nothing.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import socket
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI

from adapters.base import BaseModelInfo
from adapters.registry import Registry
from server.app import create_app
from server.connections import bounded
from server.request_log import configure_logging
from server.settings import Settings

LAST_WORDS_SECONDS = 2
"""For answers that were cut off to say so."""


class DrainingServer(uvicorn.Server):
    """What still runs `drain_seconds` after a stop was asked for ends with an error in words."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=bounded(settings.client_seconds, settings.max_header_bytes),
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=settings.drain_seconds + LAST_WORDS_SECONDS,
                server_header=False,
            )
        )
        self._drain_seconds = settings.drain_seconds
        self._supervisor = app.state.supervisor
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_hurried = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGINT and self.should_exit and not self._is_hurried:
            # uvicorn would go without stopping the engine and without noting used tokens.
            self._is_hurried = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._supervisor.end)
            return
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = loop = asyncio.get_running_loop()
        drain = 0 if self._is_hurried else self._drain_seconds
        ending = loop.call_later(drain, self._supervisor.end)
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()


def serve_until_stopped(
    settings: Settings, registry: Registry, base: BaseModelInfo, listening: socket.socket
) -> int:
    """Serve on the socket; returns the exit code: 0 after a signal, 1 when no engine came up."""
    configure_logging(settings.log_format)
    failures: list[BaseException] = []

    def give_up(error: BaseException) -> None:
        if not server.should_exit:  # stopped while starting is stopped, not failed
            failures.append(error)
        server.should_exit = True

    app = create_app(settings, registry, base, on_engine_failure=give_up)
    server = DrainingServer(app, settings)
    # uvicorn puts these handlers back once everything is down and raises the signal again: a stop
    # that was asked for is a success.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    try:
        server.run(sockets=[listening])
    finally:
        registry.close()
        for engine in multiprocessing.active_children():
            # Its start was cut off before anybody held it; the interpreter would wait for it.
            engine.kill()
    if failures:
        structlog.get_logger(__name__).error("stopped", reason=str(failures[0]).splitlines()[0])
    return 1 if failures else 0
