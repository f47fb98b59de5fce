"""What one turn of the event loop writes to a connection goes out as one piece."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, cast

import uvloop

from server.corked import MOST_BYTES, CorkedTransport


class Counted:
    """The loop's transport, and how often it was written to."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.writes = 0

    def write(self, data: bytes) -> None:
        self.writes += 1
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def received(said: Callable[[CorkedTransport], object]) -> tuple[bytes, int]:
    """What comes out at the other end of a real connection, and in how many writes it went in."""

    troubles: list[dict[str, Any]] = []

    async def scene() -> tuple[bytes, int]:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, trouble: troubles.append(trouble))
        here, there = socket.socketpair()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=here)
        counted = Counted(transport)
        said(CorkedTransport(cast(asyncio.Transport, counted), loop))
        reader, writer = await asyncio.open_connection(sock=there)
        got = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return got, counted.writes

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(scene())
    assert not troubles
    return found


def test_a_turn_is_one_piece() -> None:
    def speak(corked: CorkedTransport) -> None:
        for part in (b"head", b" and", b" body"):
            corked.write(part)

        def later() -> None:
            corked.write(b", later")
            corked.close()

        asyncio.get_running_loop().call_soon(later)

    assert received(speak) == (b"head and body, later", 2)


def test_closing_loses_nothing() -> None:
    def speak(corked: CorkedTransport) -> None:
        corked.write(b"last words")
        corked.close()

    assert received(speak) == (b"last words", 1)


def test_much_goes_out_at_once() -> None:
    def speak(corked: CorkedTransport) -> None:
        corked.write(bytes(MOST_BYTES))
        assert not corked._parts  # the loop's flow control has it
        corked.write(b"rest")
        corked.close()

    got, writes = received(speak)
    assert len(got) == MOST_BYTES + 4
    assert writes == 2


def test_a_connection_that_is_lost_meanwhile() -> None:
    def speak(corked: CorkedTransport) -> None:
        corked.write(b"to nobody")
        corked.abort()

    assert received(speak) == (b"", 0)
