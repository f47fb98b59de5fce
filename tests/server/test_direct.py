"""A direct route answers as FastAPI's own would, and is what every route for answers is."""

from __future__ import annotations

import warnings
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, Request

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's own, when vLLM imports it
    from server.api import chat, completions, messages, responses
    from server.direct import DirectRoute

from served import TASTES, Served

QUESTION = '{"messages": [{"role": "user", "content": "Where is Oslo?"}], "temperature": 0}'
JSON = "application/json"


def ask(served: Served, content: bytes, content_type: str | None) -> httpx.Response:
    headers = {"Authorization": f"Bearer {served.keys[TASTES[0]]}"}
    if content_type is not None:
        headers["Content-Type"] = content_type
    url = f"{served.server.url}/v1/chat/completions"
    return httpx.post(url, content=content, headers=headers, timeout=60)


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "application/x+json"])
def test_other_names_of_json_are_answered_alike(served: Served, kind: str) -> None:
    told = [ask(served, QUESTION.encode(), one).json()["choices"] for one in (JSON, kind)]
    assert told[0] == told[1]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_other_encodings_of_json_are_answered_alike(served: Served, encoding: str) -> None:
    told = [ask(served, QUESTION.encode(one), JSON).json() for one in ("utf-8", encoding)]
    assert told[0]["choices"] == told[1]["choices"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[]", b"null", b"1", b'{"messages": 1}', b"[" * 100_000]
)
def test_what_does_not_fit_is_refused_as_fastapi_does(served: Served, content: bytes) -> None:
    """The other content type goes FastAPI's way from the beginning."""
    direct, usual = (ask(served, content, kind) for kind in (JSON, f"{JSON}; charset=utf-8"))
    assert direct.status_code == usual.status_code == 400
    assert direct.json() == usual.json()


@pytest.mark.parametrize("kind", [None, "text/plain", "multipart/form-data", "nonsense"])
def test_what_is_not_called_json_is_refused(served: Served, kind: str | None) -> None:
    assert ask(served, QUESTION.encode(), kind).status_code == 400


@pytest.mark.parametrize("module", [chat, completions, messages, responses])
def test_routes_for_answers_are_direct(module: Any) -> None:
    assert all(isinstance(route, DirectRoute) for route in module.router.routes)


def test_an_endpoint_with_other_parameters_is_refused() -> None:
    router = APIRouter(route_class=DirectRoute)

    with pytest.raises(TypeError, match="odd does not take a body"):

        @router.post("/")
        async def odd(raw_request: Request) -> None: ...
