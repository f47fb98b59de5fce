"""What one turn of the event loop sends to the engine goes out at its end, message after message.

zmq hands a message to a thread of its own, which has to be woken for it: where requests are many,
a tenth of what a short answer costs the front end. A thread that is still awake costs nothing; and
requests that came together reach the engine before it begins a step with the first of them.
Owns the moment of sending; the order stays. Written against vLLM 0.32.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any


class Bursts:
    """In place of `_send_input_message` of vLLM's client of an engine."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._send = client._send_input_message
        self._waiting: list[tuple[Any, Any]] = []

    def __call__(self, message: Any, engine: Any) -> Awaitable[None]:
        """Raises EngineDeadError, as vLLM's does.

        What is sent to an engine that dies meanwhile is lost with it: who waits for its answer
        hears that from vLLM's watch of the engine.
        """
        self._client.ensure_alive()
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._flush)
        self._waiting.append((message, engine))
        sent = loop.create_future()
        sent.set_result(None)
        return sent

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for message, engine in waiting:
            sent: asyncio.Future[Any] = self._send(message, engine)
            sent.add_done_callback(_have_seen)


def _have_seen(sent: asyncio.Future[Any]) -> None:
    """Look at the error of a future, if any, so that asyncio does not write it into the log."""
    if not sent.cancelled():
        sent.exception()


def install(client: Any) -> None:
    """Have a client of vLLM's send in bursts."""
    client._send_input_message = Bursts(client)
