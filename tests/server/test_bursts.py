"""Messages to the engine wait for the end of the turn, over zmq's own sockets."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import zmq
import zmq.asyncio

from server.engine.bursts import install


class Client:
    """Of vLLM's, what sends: a socket, and an engine that may have died."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.dead = False
        self.sent: list[Any] = []

    def ensure_alive(self) -> None:
        if self.dead:
            raise RuntimeError("the engine is dead")

    def _send_input_message(self, message: tuple[bytes, ...], engine: bytes) -> Any:
        self.ensure_alive()
        self.sent.append(message)
        return self.socket.send_multipart((engine, *message), copy=False)


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Client, Any]]:
    """A client that sends in bursts, and the engine's end."""
    context = zmq.asyncio.Context()
    here, there = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    try:
        port = here.bind_to_random_port("tcp://127.0.0.1")
        there.setsockopt(zmq.IDENTITY, b"engine")
        there.connect(f"tcp://127.0.0.1:{port}")
        await there.send(b"hello")  # as vLLM's engine does, so that the router knows it
        await here.recv_multipart()
        client = Client(here)
        install(client)
        yield client, there
    finally:
        context.destroy(linger=0)


def test_what_a_turn_sends_goes_out_at_its_end_and_in_order() -> None:
    async def turns() -> None:
        async with connected() as (client, engine):
            for number in range(32):
                await client._send_input_message((b"add", b"%d" % number), b"engine")
                assert client.sent == []  # awaiting it does not end the turn
            got = [await engine.recv_multipart() for _ in range(32)]
            assert got == [[b"add", b"%d" % number] for number in range(32)]
            await client._send_input_message((b"abort", b"7"), b"engine")
            await asyncio.sleep(0)
            assert client.sent[-1] == (b"abort", b"7")  # the next turn is another burst
            assert await engine.recv_multipart() == [b"abort", b"7"]

    asyncio.run(turns())


def test_a_dead_engine_is_told_at_once_and_one_that_dies_before_the_end_is_no_noise(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def turns() -> None:
        async with connected() as (client, _):
            await client._send_input_message((b"add",), b"engine")
            client.socket.close(linger=0)
            await asyncio.sleep(0.01)
            assert client.sent  # it was tried
            gc.collect()  # which is when asyncio would complain
            client.dead = True
            with pytest.raises(RuntimeError, match="dead"):
                client._send_input_message((b"add",), b"engine")

    asyncio.run(turns())
    assert caplog.text == ""
