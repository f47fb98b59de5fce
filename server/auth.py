"""Who is calling? From the API key to a `Caller`, before a body is read or a route is found.

Owns the pure ASGI middleware that authenticates and the meaning of `X-User-Id`. What a caller may
do is the routes' and the registry's. Raw keys are never logged or kept.
Invariant: past this middleware every request outside `OPEN_PATHS` has a `Caller` in its state.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from adapters.accounts import Caller, Role
from adapters.view import RegistryView
from server.errors import NotAllowed, ServerError, Unauthenticated, error_response

OPEN_PATHS = frozenset({"/health/live", "/health/ready"})
METRICS_PATH = "/metrics"
CONFIGURED_ADMIN = Caller(role=Role.ADMIN, user_id=None, key_id="configured")
SCRAPER = Caller(role=Role.SERVICE, user_id=None, key_id="metrics")
"""Who has the key to the metrics: no caller anywhere else."""
NOBODY_ASKED = Caller(role=Role.ADMIN, user_id=None, key_id="no-auth")


def presented_key(headers: Headers) -> str:
    """The key of `Authorization: Bearer …`, or of `x-api-key` as Anthropic's clients send it."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    if key := headers.get("x-api-key", "").strip():
        return key
    raise Unauthenticated("send an API key: `Authorization: Bearer <key>`")


def speaking_for(caller: Caller, user_id: str | None) -> Caller:
    """The caller with the user that `X-User-Id` names, where the key may speak for others."""
    if user_id is None or user_id == caller.user_id:
        return caller
    if caller.role is Role.USER:
        raise NotAllowed("this key speaks for its own user only: drop X-User-Id")
    return replace(caller, user_id=user_id)


class Authentication:
    """ASGI middleware: puts `scope["state"]["caller"]`, or answers 401 and reaches nothing."""

    def __init__(
        self,
        app: ASGIApp,
        view: RegistryView,
        admin_key: str | None,
        metrics_key: str | None = None,
        *,
        no_auth: bool = False,
    ) -> None:
        self.app = app
        self.view = view
        self._no_auth = no_auth
        self._admin_digest = _digest(admin_key)
        self._metrics_digest = _digest(metrics_key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        try:
            scope.setdefault("state", {})["caller"] = self.caller(
                Headers(scope=scope), scope["path"]
            )
        except ServerError as error:
            await error_response(error)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def caller(self, headers: Headers, path: str = "") -> Caller:
        """Who sends these headers, and for whom. Raises Unauthenticated, NotAllowed."""
        found = NOBODY_ASKED if self._no_auth else self._identify(presented_key(headers), path)
        return speaking_for(found, headers.get("x-user-id"))

    def _identify(self, key: str, path: str) -> Caller:
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        if self._admin_digest and hmac.compare_digest(digest, self._admin_digest):
            return CONFIGURED_ADMIN
        if path == METRICS_PATH and hmac.compare_digest(digest, self._metrics_digest or b""):
            return SCRAPER
        caller = self.view.verify_key(key)
        if caller is None:
            raise Unauthenticated("this API key is not valid: ask the administrator for one")
        return caller


def _digest(key: str | None) -> bytes | None:
    return hashlib.sha256(key.encode()).digest() if key else None
