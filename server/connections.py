"""How long a client may take, to send what he asks and to take off his answer; how long a head is.

Owns uvicorn's connection with the bounds that no application can have, since it is called when the
head is complete. uvicorn has a clock for idle connections only, so a header or body that trickles
in would hold a connection for as long as somebody likes, and an answer that nobody reads the
adapter's turn; and its parser keeps whatever head it is sent. Knows no routes.
Invariant: only the client's time counts; while the server itself reads no further, it stands still.
"""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from server.corked import CorkedTransport
from server.errors import HeadTooLarge, ServerError, TooSlow, error_body

BYTES_A_SECOND = 16 * 1024
"""Each of so many received gives a body a second more."""


class BoundedConnection(HttpToolsProtocol):
    """Closed, after an answer where that makes sense, when its time is over or a head too long."""

    def __init__(self, client_seconds: float, head_bytes: int, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._client_seconds = client_seconds
        self._largest_head = head_bytes
        self._head_bytes = 0
        self._in_head = False
        self._sending: asyncio.TimerHandle | None = None
        self._taking: asyncio.TimerHandle | None = None
        self._has_begun = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, CorkedTransport(transport, self.loop)))
        self._must_send_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        self._has_sent()
        self._has_taken()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._head_bytes = self._head_bytes + len(data) if self._in_head else 0
        if self._head_bytes > self._largest_head and not self.transport.is_closing():
            told = f"the headers are larger than {self._largest_head} bytes"
            self.transport.write(_refusal(HeadTooLarge(told)))
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._has_begun = self._in_head = True
        self._must_send_soon()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if self._sending is not None and not self.cycle.response_complete:
            self._must_send_soon(self._sending.when() + len(body) / BYTES_A_SECOND)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._has_begun = False
        self._has_sent()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.pipeline:
            self._must_send_soon()  # the next request, or the rest of one that was refused

    def pause_writing(self) -> None:
        super().pause_writing()
        self._taking = self.loop.call_later(self._client_seconds, self._abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._has_taken()

    def _must_send_soon(self, when: float | None = None) -> None:
        self._has_sent()
        when = self.loop.time() + self._client_seconds if when is None else when
        self._sending = self.loop.call_at(when, self._too_slow)

    def _has_sent(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def _has_taken(self) -> None:
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None

    def _abort(self) -> None:
        self.transport.abort()

    def _too_slow(self) -> None:
        if self.transport.is_closing():
            self.transport.abort()  # what is left to send, nobody takes off
            return
        self._must_send_soon()
        if self.flow.read_paused:
            return
        answered = self.cycle is not None and self.cycle.response_started
        if self._has_begun and not answered:
            told = f"the request did not arrive within {self._client_seconds:g} seconds"
            self.transport.write(_refusal(TooSlow(f"{told}: send it faster")))
        self.transport.close()


def bounded(client_seconds: float, head_bytes: int) -> Any:
    """For uvicorn's `http`: connections with a bound on the client's time and on heads."""
    return partial(BoundedConnection, client_seconds, head_bytes)


def _refusal(error: ServerError) -> bytes:
    body = json.dumps(error_body(str(error), error.type, error.code)).encode()
    head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    return STATUS_LINE[error.status] + head % len(body) + body
