"""What a client may send: bounds on the bytes of head and body, no headers that steer the engine.

Owns pure ASGI middlewares and nothing of what the bytes mean. Uploads have a bound of their own.
Invariant: never more than the bound is passed on, whatever Content-Length claims.
"""

from __future__ import annotations

import sys

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import HeadTooLarge, TooLarge, error_response

UPLOAD_SUFFIX = "/versions"
WHOLE_REGISTRY = "/admin/registry"
"""Read piece by piece, and only for an administrator: bounded by the disk."""
MULTIPART_OVERHEAD = 1024 * 1024  # boundaries, part headers, the two small JSON files


class BodyLimit:
    """ASGI middleware: answers 413 once a body is, or claims to be, larger than allowed."""

    def __init__(self, app: ASGIApp, body_bytes: int, upload_bytes: int) -> None:
        self.app = app
        self.body_bytes = body_bytes
        self.upload_bytes = upload_bytes + MULTIPART_OVERHEAD

    def _bound(self, path: str) -> int:
        if path == WHOLE_REGISTRY:
            return sys.maxsize
        is_upload = path.startswith("/admin/adapters/") and path.endswith(UPLOAD_SUFFIX)
        return self.upload_bytes if is_upload else self.body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        bound = self._bound(scope["path"])
        claimed = Headers(scope=scope).get("content-length", "0")
        if claimed.isdigit() and int(claimed) > bound:
            await _too_large(bound)(scope, receive, send)
            return
        received = 0
        answered = False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > bound:
                raise _BodyTooLarge
            return message

        async def noted(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self.app(scope, counted, noted)
        except _BodyTooLarge:
            if not answered:
                await _too_large(bound)(scope, receive, send)


def _too_large(bound: int) -> ASGIApp:
    return error_response(TooLarge(f"the request body is larger than {bound} bytes"))


class _BodyTooLarge(BaseException):
    """Unwinds the application; a BaseException so that no route mistakes it for its own error."""


class HeadLimit:
    """ASGI middleware: answers 431 to a request whose line and headers are larger than allowed.

    A head without an end never comes here: `connections.py` cuts it off.
    """

    def __init__(self, app: ASGIApp, head_bytes: int) -> None:
        self.app = app
        self.head_bytes = head_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            line = len(scope.get("raw_path") or b"") + len(scope["query_string"])
            size = line + sum(len(name) + len(value) + 4 for name, value in scope["headers"])
            if size > self.head_bytes:
                refusal = HeadTooLarge(f"the headers are larger than {self.head_bytes} bytes")
                await error_response(refusal)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class DropHeaders:
    """ASGI middleware: takes the named request headers (lower case) out."""

    def __init__(self, app: ASGIApp, names: frozenset[bytes]) -> None:
        self.app = app
        self.names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            kept = [pair for pair in scope["headers"] if pair[0] not in self.names]
            scope = {**scope, "headers": kept}
        await self.app(scope, receive, send)
