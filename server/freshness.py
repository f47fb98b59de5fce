"""A change is in force when its answer goes out, on the server that was asked.

Owns the one place where this server's own writes reach its view of the registry. Other servers'
writes are the view's to find.
"""

from __future__ import annotations

from contextlib import suppress

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters.errors import StoreError
from adapters.view import RegistryView

CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
OF_USERS = "/v1/feedback/consent"
"""The one change of the registry that is not only an administrator's to make."""


class RefreshAfterWrites:
    """ASGI middleware: the view looks at the registry before the answer to a change goes out."""

    def __init__(self, app: ASGIApp, view: RegistryView) -> None:
        self.app = app
        self.view = view

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent_when_seen(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400:
                await run_in_threadpool(self._refresh)
            await send(message)

        changes = scope["type"] == "http" and scope["method"] in CHANGING
        if changes and (scope["path"].startswith("/admin/") or scope["path"] == OF_USERS):
            await self.app(scope, receive, sent_when_seen)
        else:
            await self.app(scope, receive, send)

    def _refresh(self) -> None:
        with suppress(StoreError):  # the change is made: the view will find it by itself
            self.view.refresh()
