"""What one request may ask for, and what its head and body may weigh, over HTTP and by itself."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.datastructures import Headers

from adapters.accounts import Role
from server.auth import Authentication
from server.bounds import check_bounds
from server.errors import BadRequest
from server.settings import Settings

from served import Served, chat, refused

BOUNDS = Settings(
    max_sequences=4, max_answer_tokens=100, max_tools=2, max_logit_bias=3, max_stops=2
)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n": 4}, None),
        ({"n": 5}, "n"),
        ({"n": None, "best_of": 5}, "n"),
        ({"prompt": ["a", "b"], "n": 3}, "n"),
        ({"prompt": ["a", "b", "c", "d", "e"]}, "prompt"),
        ({"prompt": [[1, 2], [3], [4], [5], [6]]}, "prompt"),
        ({"prompt": [1, 2, 3, 4, 5, 6]}, None),
        ({"prompt": "a long text, and one prompt"}, None),
        ({"max_tokens": 100}, None),
        ({"max_tokens": 101}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 101}, "max_completion_tokens"),
        ({"max_output_tokens": 101}, "max_output_tokens"),
        ({"tools": [1, 2, 3]}, "tools"),
        ({"logit_bias": {"1": 1, "2": 1, "3": 1}}, None),
        ({"logit_bias": {"1": 1, "2": 1, "3": 1, "4": 1}}, "logit_bias"),
        ({"stop": "a text is one"}, None),
        ({"stop": ["a", "b", "c"]}, "stop"),
        ({"stop_sequences": ["a", "b", "c"]}, "stop_sequences"),
        ({"stop_token_ids": [1, 2, 3]}, "stop_token_ids"),
    ],
)
def test_counts(body: dict[str, Any], param: str | None) -> None:
    request = SimpleNamespace(**body)
    if param is None:
        check_bounds(request, BOUNDS)
        return
    with pytest.raises(BadRequest) as refusal:
        check_bounds(request, BOUNDS)
    assert refusal.value.param == param


def test_an_answer_of_unknown_length_gets_the_longest() -> None:
    request = SimpleNamespace(max_tokens=None, max_completion_tokens=None)
    check_bounds(request, BOUNDS)
    assert request.max_completion_tokens == 100
    check_bounds(request, Settings())


def test_without_keys_everybody_is_an_administrator() -> None:
    async def app(*_: object) -> None: ...

    caller = Authentication(app, None, None, no_auth=True).caller(  # type: ignore[arg-type]
        Headers({"X-User-Id": "alice"})
    )
    assert (caller.role, caller.user_id) == (Role.ADMIN, "alice")


def test_over_http(served: Served) -> None:
    key = served.keys["pirate"]
    assert refused(chat(served, key, n=129), 400, "invalid_request")["param"] == "n"
    stops = refused(chat(served, key, stop=list("abcdef")), 400, "invalid_request")
    assert "stop" in stops["param"]
    tools = [{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]
    assert refused(chat(served, key, tools=tools), 400, "invalid_request")["param"] == "tools"
    long = chat(served, key, messages=[{"role": "user", "content": "word " * 1_000_000}])
    assert "4096" in refused(long, 400, "invalid_request")["message"] or long.elapsed.seconds < 5


def test_heads_over_the_limit(served: Served) -> None:
    heavy = chat(served, served.keys["pirate"], headers={"X-Heavy": "x" * 40_000})
    refused(heavy, 431, "headers_too_large")
    address = urlsplit(served.server.url)
    long_path = httpx.get(f"{served.server.url}/v1/models/{'x' * 40_000}")
    refused(long_path, 431, "headers_too_large")
    # One that never ends is cut off, with all that the server had kept of it.
    with socket.create_connection((address.hostname, address.port), timeout=20) as endless:
        endless.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Heavy: ")
        sent = 0
        try:
            while sent < 64_000_000:
                sent += endless.send(b"x" * 65_536)
            answer = b""
        except OSError:
            answer = b"cut off"
        assert sent < 16_000_000, "the server went on reading"
        assert answer == b"cut off"


def admin_post(served: Served, path: str, key: str | None = None, **body: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key or served.server.admin_key}"}
    return httpx.post(served.server.url + path, headers=headers, json=body, timeout=60)


def test_vllms_way_to_load_takes_a_name_and_no_path(served: Served) -> None:
    def resident() -> list[str]:
        found: list[str] = served.server.call("GET", "/admin/engine")["resident"]
        return found

    load, unload = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
    loaded = admin_post(served, load, lora_name="formal")
    assert loaded.json() == {"adapter": "formal@1", "resident": True}
    assert "formal@1" in resident()
    assert admin_post(served, unload, lora_name="formal").status_code == 200
    assert "formal@1" not in resident()
    assert chat(served, served.keys["formal"]).headers["X-Adapter-Id"] == "formal@1"

    path = admin_post(served, load, lora_name="formal", lora_path="/etc")
    refused(path, 400, "invalid_request")
    refused(admin_post(served, load, lora_name="/etc/passwd"), 404, "model_not_found")
    refused(admin_post(served, load, lora_name="base"), 400, "invalid_request")
    for route in (load, unload):
        answer = admin_post(served, route, served.keys["formal"], lora_name="formal")
        refused(answer, 403, "not_allowed")


@pytest.mark.parametrize("value", [-5, 2**40])
def test_what_vllms_request_models_refuse_is_an_error_of_the_request(
    served: Served, value: int
) -> None:
    answer = chat(served, served.keys["pirate"], prompt_logprobs=value)
    assert refused(answer, 400, "invalid_request")["param"] == "prompt_logprobs"


def test_the_id_of_an_answer_is_the_servers_to_give(served: Served) -> None:
    for stream in (False, True):
        answer = chat(served, served.keys["pirate"], request_id="mine", stream=stream, max_tokens=2)
        assert answer.status_code == 200
        assert "chatcmpl-" in answer.text
        assert "mine" not in answer.text
