"""Runs the application under uvicorn until a signal or the engine's failure ends it.

Owns the event loop and the exit code; `app.py` owns what is served.
"""

from __future__ import annotations

import signal
import socket

import structlog
import uvicorn

from adapters.base import BaseModelInfo
from adapters.registry import Registry
from server.app import create_app
from server.request_log import configure_logging
from server.settings import Settings
from server.wire import bounded_http


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
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=settings.drain_seconds,
            server_header=False,
            http=bounded_http(settings.max_header_bytes),
        )
    )
    # uvicorn puts these handlers back once everything is down and raises the signal again: a stop
    # that was asked for is a success.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    try:
        server.run(sockets=[listening])
    finally:
        registry.close()
    if failures:
        structlog.get_logger(__name__).error("stopped", reason=str(failures[0]).splitlines()[0])
    return 1 if failures else 0
