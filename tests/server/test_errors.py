"""Errors on their way out: one shape, the status by meaning, nothing of the machine in words."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from adapters import errors as domain
from server import errors


def answer_to(error: Callable[[], Exception]) -> Any:
    """What a client gets when a route raises `error`."""
    app = FastAPI()
    errors.install(app)

    @app.get("/")
    async def route() -> None:
        raise error()

    with TestClient(app, raise_server_exceptions=False) as client:
        return client.get("/")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (lambda: domain.AdapterNotFound("x"), 404, "model_not_found"),
        (lambda: domain.Forbidden("no"), 404, "model_not_found"),
        (lambda: domain.InvalidAdapter(["r is 0"]), 422, "invalid_adapter"),
        (lambda: domain.VersionConflict("no"), 409, "version_conflict"),
        (lambda: domain.StoreFull("full"), 507, "store_full"),
        (lambda: OSError(errno.ENOSPC, "No space left on device"), 507, "store_full"),
        (lambda: OSError(errno.EIO, "Input/output error"), 503, "store_unavailable"),
        (lambda: errors.EngineUnavailable("later"), 503, "engine_unavailable"),
        (lambda: ZeroDivisionError("secret"), 500, "internal_error"),
    ],
)
def test_status_and_shape(error: Callable[[], Exception], status: int, code: str) -> None:
    answer = answer_to(error)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.json()["error"]["code"] == code
    assert ("Retry-After" in answer.headers) == (status == 503)
    assert "secret" not in answer.text
