"""The OpenAPI document: what FastAPI finds in the routes, and how a caller says who he is.

Owns what the routes cannot say, since keys are checked before any of them is found. The document
is served at `/openapi.json` to whoever has a key.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from server.auth import OPEN_PATHS
from server.routing import ADAPTER_HEADERS

SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API key, as OpenAI's"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


INFERENCE = "inference"
"""The tag of the routes that take an adapter's header."""


def _header(name: str, says: str) -> dict[str, Any]:
    told = {"name": name, "in": "header", "required": False, "description": says}
    return {**told, "schema": {"type": "string"}}


SPEAKING_FOR = _header("X-User-Id", "the user whom a service or admin key speaks for")
SELECTING = [_header(name, says) for name, says in ADAPTER_HEADERS.items()]


def describe(app: FastAPI) -> None:
    """Have `app.openapi()` answer with the whole document, made once."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(
                title=app.title, version=app.version, summary=app.summary, routes=app.routes
            )
            made["components"]["securitySchemes"] = SCHEMES
            made["security"] = [{name: []} for name in SCHEMES]
            for path, operations in made["paths"].items():
                for operation in operations.values():
                    if path in OPEN_PATHS:
                        operation["security"] = []
                    else:
                        operation.setdefault("parameters", []).append(SPEAKING_FOR)
                    if INFERENCE in operation.get("tags", ()):
                        operation["parameters"] += SELECTING
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
