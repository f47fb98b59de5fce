"""A body of many megabytes, received in pieces of one.

Owns the size of the pieces in which a large multipart body reaches its parser. As they come from
the network they have 64 KiB, and each is written to the disk by a thread that must be woken first:
1,280 times for 80 MB, each time behind whatever keeps the cores busy. Bounds on the body and on how
long it may take are before this, in `server/bounds.py` and `server/connections.py`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

PIECE = 2**20


class _InPieces(Request):
    async def stream(self) -> AsyncGenerator[bytes, None]:
        held = bytearray()
        async for chunk in super().stream():
            held += chunk
            if len(held) >= PIECE:
                yield bytes(held)
                held.clear()
        if held:
            yield bytes(held)
        yield b""


class LargeBody(APIRoute):
    """A route that reads its body so (a `route_class`)."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def in_pieces(request: Request) -> Response:
            return await answer(_InPieces(request.scope, request.receive))

        return in_pieces
