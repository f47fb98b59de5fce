"""No request waits for a thread before its route has begun."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator

import pytest
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's own, when vLLM imports it
    from server.app import ROUTES

EVERY = [
    route for module in ROUTES for route in module.router.routes if isinstance(route, APIRoute)
]


def below(dependant: Dependant) -> Iterator[Dependant]:
    for one in dependant.dependencies:
        yield one
        yield from below(one)


@pytest.mark.parametrize("route", EVERY, ids=lambda route: f"{min(route.methods)} {route.path}")
def test_dependencies_are_async(route: APIRoute) -> None:
    """FastAPI takes others to a thread, one after the other: 2 of 3 ms that a short chat took."""
    blocking = [
        one.call
        for one in below(route.dependant)
        if not (inspect.iscoroutinefunction(one.call) or inspect.isasyncgenfunction(one.call))
    ]
    assert not blocking


def test_an_inference_route_has_one_dependency() -> None:
    chat = next(route for route in EVERY if route.path == "/v1/chat/completions")
    assert len(list(below(chat.dependant))) == 1
