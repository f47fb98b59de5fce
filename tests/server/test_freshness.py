"""The answer to a change goes out when this server's own view has it, not a poll later."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from adapters.db import writing
from adapters.registry import Registry, open_registry
from adapters.view import RegistryView
from server.freshness import RefreshAfterWrites


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    opened = open_registry(tmp_path)
    yield opened
    opened.close()


def answer(registry: Registry, view: RegistryView, method: str, path: str, status: int) -> int:
    """Ask an app that creates a user whatever it is asked, and says this status."""

    async def create(request: Request) -> Response:
        registry.accounts.create_user("ann")
        return Response(status_code=status)

    app = Starlette(routes=[Route("/{path:path}", create, methods=[method])])
    app.add_middleware(RefreshAfterWrites, view=view)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.request(method, path)

    return asyncio.run(ask()).status_code


@pytest.mark.parametrize(
    ("method", "path", "status", "looked"),
    [
        ("POST", "/admin/users", 201, True),
        ("PUT", "/admin/x/grants", 200, True),
        ("DELETE", "/admin/users/x", 204, True),
        ("POST", "/admin/users", 409, False),
        ("GET", "/admin/users", 200, False),
        ("POST", "/v1/chat/completions", 200, False),
    ],
)
def test_who_makes_the_view_look(
    registry: Registry, method: str, path: str, status: int, looked: bool
) -> None:
    view = RegistryView(registry)  # not started: it looks only when it is told to
    assert answer(registry, view, method, path, status) == status
    assert (view.revision == 1) is looked


def test_a_change_stays_made_when_the_view_cannot_look(registry: Registry) -> None:
    view = RegistryView(registry)
    with writing(registry.engine) as session:
        session.execute(text("ALTER TABLE group_members RENAME TO members_away"))
    assert answer(registry, view, "POST", "/admin/users", 201) == 201
