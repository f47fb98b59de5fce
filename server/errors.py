"""From meaning to HTTP: the one table of statuses and codes, and the one shape of an error body.

Owns `ServerError` (what this room can refuse by itself) and the rendering of every error as
OpenAI does: `{"error": {"message", "type", "param", "code"}}`, all four keys. Knows no route.
Invariant: every class of `adapters.errors` has a row here (a test walks the tree).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from adapters import errors as domain
from adapters.files import as_store_error

log = structlog.get_logger(__name__)

ANTHROPIC = "/v1/messages"
ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
RETRY_AFTER = 5
COME_BACK = frozenset({429, 503})


class ServerError(Exception):
    """A request that this room refuses; `str()` is the sentence for the client."""

    status, type, code = 500, "server_error", "internal_error"
    retry_after = RETRY_AFTER
    """Seconds, for the statuses that invite to come back."""

    headers: Sequence[tuple[str, str]] = ()

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class BadRequest(ServerError):
    status, type, code = 400, "invalid_request_error", "invalid_request"


class Unauthenticated(ServerError):
    status, type, code = 401, "authentication_error", "invalid_api_key"


class NotAllowed(ServerError):
    status, type, code = 403, "permission_error", "not_allowed"


class TooLarge(ServerError):
    status, type, code = 413, "invalid_request_error", "request_too_large"


class RateLimited(ServerError):
    """A limit is reached; `limit` names it, `retry_after` is in seconds."""

    status, type, code = 429, "rate_limit_error", "rate_limit_exceeded"

    def __init__(
        self,
        message: str,
        *,
        limit: str,
        type: str,
        retry_after: float,
        code: str = "rate_limit_exceeded",
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.limit, self.type, self.code = limit, type, code
        self.headers = [("Retry-After", str(max(1, math.ceil(retry_after)))), *headers]


class HeadTooLarge(ServerError):
    status, type, code = 431, "invalid_request_error", "headers_too_large"


class TooSlow(ServerError):
    status, type, code = 408, "invalid_request_error", "request_timeout"


class TooManyAtOnce(ServerError):
    """One user has more requests running and waiting than he may."""

    status, type, code = 429, "rate_limit_error", "too_many_requests"


class ClientLeft(ServerError):
    """Nobody is there to read an answer; the status is nginx's for that."""

    status, type, code = 499, "invalid_request_error", "client_closed_request"


class EngineUnavailable(ServerError):
    """The engine is starting or has died; the client should come back in so many seconds."""

    status, type, code = 503, "server_error", "engine_unavailable"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        if retry_after is not None:
            self.retry_after = math.ceil(retry_after)


class AdapterBusy(ServerError):
    """Too many different adapters are wanted at once; the client should come back."""

    status, type, code = 503, "server_error", "adapter_busy"


class AdapterQuarantined(ServerError):
    """The adapter is held back, since the engine went wrong with it."""

    status, type, code = 409, "invalid_request_error", "adapter_quarantined"


class EngineRefusal(ServerError):
    """vLLM answered with an error of its own: its status and words, in our shape."""

    def __init__(self, message: str, *, status: int, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.status = status
        self.type = "server_error" if status >= 500 else "invalid_request_error"
        self.code = {404: "model_not_found", 501: "not_implemented"}.get(
            status, "engine_error" if status >= 500 else "invalid_request"
        )


@dataclass(frozen=True)
class Meaning:
    status: int
    type: str
    code: str


_NOT_FOUND = Meaning(404, "invalid_request_error", "model_not_found")

# The nearest class in the error's ancestry decides.
MEANINGS: dict[type[domain.AdapterError], Meaning] = {
    domain.AdapterError: Meaning(500, "server_error", "internal_error"),
    domain.BaseModelError: Meaning(500, "server_error", "base_model_error"),
    domain.InvalidAdapter: Meaning(422, "invalid_request_error", "invalid_adapter"),
    domain.IncompatibleBase: Meaning(422, "invalid_request_error", "incompatible_base"),
    domain.InvalidName: Meaning(400, "invalid_request_error", "invalid_name"),
    domain.InvalidFeedback: Meaning(400, "invalid_request_error", "invalid_feedback"),
    domain.NotFound: Meaning(404, "invalid_request_error", "not_found"),
    domain.AdapterNotFound: _NOT_FOUND,
    domain.VersionNotFound: _NOT_FOUND,
    domain.UserNotFound: Meaning(404, "invalid_request_error", "user_not_found"),
    domain.GroupNotFound: Meaning(404, "invalid_request_error", "group_not_found"),
    domain.ExperimentNotFound: Meaning(404, "invalid_request_error", "experiment_not_found"),
    domain.AnswerNotFound: Meaning(404, "invalid_request_error", "answer_not_found"),
    domain.KeyNotFound: Meaning(404, "invalid_request_error", "key_not_found"),
    domain.Forbidden: _NOT_FOUND,  # so that names cannot be probed
    domain.Conflict: Meaning(409, "invalid_request_error", "conflict"),
    domain.VersionConflict: Meaning(409, "invalid_request_error", "version_conflict"),
    domain.AlreadyExists: Meaning(409, "invalid_request_error", "already_exists"),
    domain.QuotaExceeded: Meaning(403, "permission_error", "quota_exceeded"),
    domain.TextsNotKept: Meaning(409, "invalid_request_error", "texts_not_kept"),
    domain.GateRefused: Meaning(409, "invalid_request_error", "gate_refused"),
    domain.StoreError: Meaning(503, "server_error", "store_unavailable"),
    domain.StoreFull: Meaning(507, "server_error", "store_full"),
    domain.CorruptArtifact: Meaning(503, "server_error", "corrupt_artifact"),
    domain.InvalidExport: Meaning(422, "invalid_request_error", "invalid_export"),
}


def meaning_of(error: domain.AdapterError) -> Meaning:
    return next(MEANINGS[kind] for kind in type(error).__mro__ if kind in MEANINGS)


def error_body(message: str, type: str, code: str, param: str | None = None) -> dict[str, object]:
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


class _ErrorAnswer(JSONResponse):
    """An error in OpenAI's shape; to a caller of Anthropic's, with the two `type`s of theirs."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith(ANTHROPIC):
            headers = {k: v for k, v in self.headers.items() if not k.startswith("content-")}
            error = {**json.loads(bytes(self.body))["error"], "type": _anthropic(self.status_code)}
            body = {"type": "error", "error": error}
            await JSONResponse(body, self.status_code, headers)(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def _anthropic(status: int) -> str:
    """What Anthropic calls an error of this status."""
    return ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")


def error_response(error: ServerError | domain.AdapterError) -> JSONResponse:
    """The JSON answer to a refused request, with `Retry-After` where coming back makes sense."""
    if isinstance(error, ServerError):
        meaning, param = Meaning(error.status, error.type, error.code), error.param
        retry_after = error.retry_after
    else:
        meaning, param, retry_after = meaning_of(error), None, RETRY_AFTER
    if meaning.code == "model_not_found":
        param = "model"
    headers = {"Retry-After": str(retry_after)} if meaning.status in COME_BACK else {}
    if isinstance(error, ServerError):
        headers |= dict(error.headers)
    if meaning.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = error_body(str(error), meaning.type, meaning.code, param)
    return _ErrorAnswer(body, meaning.status, headers)


async def _on_known(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, ServerError | domain.AdapterError):
        raise error
    return error_response(error)


async def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    message = first["msg"].removeprefix("Value error, ")
    return error_response(
        BadRequest(f"{place}: {message}" if place else message, param=place or None)
    )


async def _on_disk(request: Request, error: Exception) -> JSONResponse:
    """A disk that fails under a request: full is told from broken."""
    if not isinstance(error, OSError):
        raise error
    log.error("disk_error", path=request.url.path, exc_info=error)
    return error_response(as_store_error(error, Path(error.filename or "the upload")))


async def _on_http(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        raise error
    if isinstance(error.__cause__, OSError):  # FastAPI could not spool the body
        return await _on_disk(request, error.__cause__)
    code = "not_found" if error.status_code == 404 else "invalid_request"
    body = error_body(str(error.detail), "invalid_request_error", code)
    return _ErrorAnswer(body, error.status_code, error.headers)


async def _on_client_gone(request: Request, error: Exception) -> JSONResponse:
    """Nobody reads this: the connection is closed."""
    log.info("client_left", path=request.url.path)
    return error_response(BadRequest("the request broke off before its end"))


async def _on_unforeseen(request: Request, error: Exception) -> JSONResponse:
    log.error("unforeseen_error", path=request.url.path, exc_info=error)
    return error_response(
        ServerError("something went wrong here; the server's log has the details")
    )


async def _on_refused_body(request: Request, error: Exception) -> JSONResponse:
    """What the engine's own request models refuse, in their words."""
    return error_response(BadRequest(str(error), param=getattr(error, "parameter", None)))


def install(app: FastAPI, *refused_bodies: type[Exception]) -> None:
    """Render every error that a route lets through, and the engine's own `refused_bodies`."""
    for refused in refused_bodies:
        app.add_exception_handler(refused, _on_refused_body)
    app.add_exception_handler(ServerError, _on_known)
    app.add_exception_handler(domain.AdapterError, _on_known)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(OSError, _on_disk)
    app.add_exception_handler(ClientDisconnect, _on_client_gone)
    app.add_exception_handler(Exception, _on_unforeseen)
