"""Is the client still there? Whoever waits in a queue for one that has left, waits for nothing.

Owns listening for the end of a connection while something else goes on, from the moment in which
the request's body has been read to the last byte of its answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import TypeVar

import structlog
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from server.errors import ClientLeft

log = structlog.get_logger(__name__)

T = TypeVar("T")


async def while_present(receive: Receive, work: Awaitable[T]) -> T:
    """The work's result. Raises ClientLeft, and the work is cancelled, once the client has left."""

    loop = asyncio.get_running_loop()
    listening: asyncio.Task[None] | None = None

    async def hear_the_end() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        patience.reschedule(loop.time())

    def listen() -> None:
        nonlocal listening
        listening = loop.create_task(hear_the_end())

    try:
        async with asyncio.timeout(None) as patience:
            # Work that need not wait is done before this is called, and no task is made for it.
            soon = loop.call_soon(listen)
            try:
                result = await work
            finally:
                soon.cancel()
                if listening is not None:
                    listening.cancel()
    except Exception as error:
        if not patience.expired():
            raise
        # The work made an error of being cancelled, or broke down while it was; nobody is there to
        # be told. Its words may be the user's and stay out of the log.
        log.info("failed_after_its_client_left", error=type(error).__name__)
    if patience.expired():  # also where it made an answer of that
        raise ClientLeft("the client has left")
    return result


class Stream(StreamingResponse):
    """An answer in parts, none of which is made once the client has left.

    Starlette's own starts two tasks for it, in a group: a tenth of what a short answer takes.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientLeft):
            await while_present(receive, self.stream_response(send))
