"""Work for a client ends with the client, whatever the work makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.types import Message, Receive

from server.errors import ClientLeft
from server.presence import Stream, while_present


def leaving(gone: asyncio.Event) -> Receive:
    async def receive() -> Message:
        await gone.wait()
        return {"type": "http.disconnect"}

    return receive


@pytest.mark.parametrize("raises", [False, True])
def test_work_that_answers_its_own_cancellation(raises: bool) -> None:
    """vLLM's handlers make an error's answer of it, and we an error of that; nobody reads it."""

    async def scene() -> None:
        gone = asyncio.Event()

        async def work() -> str:
            try:
                gone.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError as error:
                if raises:
                    raise ValueError("client disconnected") from error
                return "client disconnected"
            return "never"

        with pytest.raises(ClientLeft):
            await while_present(leaving(gone), work())

    asyncio.run(asyncio.wait_for(scene(), 10))


@pytest.mark.parametrize("stays", [True, False])
def test_a_stream_ends_with_its_client(stays: bool) -> None:
    sent: list[Any] = []
    ended: list[str] = []

    async def scene() -> None:
        gone = asyncio.Event()

        async def parts() -> AsyncIterator[str]:
            try:
                yield "one"
                if not stays:
                    gone.set()
                    await asyncio.Event().wait()
                yield "two"
            finally:
                ended.append("generation")

        async def send(message: Message) -> None:
            sent.append(message.get("body"))

        await Stream(parts())({"type": "http"}, leaving(gone), send)

    asyncio.run(asyncio.wait_for(scene(), 10))
    assert sent == ([None, b"one", b"two", b""] if stays else [None, b"one"])
    assert ended == ["generation"]
