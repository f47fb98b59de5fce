"""What is written to a connection in one turn of the event loop goes out as one piece.

uvloop makes a system call of every write, and each wakes the client: the head, the first token, the
last one, `[DONE]` and the end of a short answer are five. Owns a transport around the loop's that
waits for the end of the turn, and no longer. What does not fit into `MOST_BYTES` goes out at once,
so that the loop's own flow control sees a client that does not read.
"""

from __future__ import annotations

import asyncio
from typing import Any

MOST_BYTES = 64 * 1024


class CorkedTransport:
    """A transport whose writes wait for the end of the turn; all the rest is the other's."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)
        self._size += len(data)
        if self._size >= MOST_BYTES:
            self._flush()

    def close(self) -> None:
        """Write what waits, then close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._parts:
            data = b"".join(self._parts)
            self._parts.clear()
            self._size = 0
            if not self._transport.is_closing():  # lost since, and with it who waits for this
                self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
