"""`/v1/responses` and `/v1/messages` over HTTP: the caller's adapter, and nobody's old answers."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from served import QUESTION, Served, refused

BODIES: dict[str, dict[str, Any]] = {
    "/v1/responses": {"input": QUESTION, "max_output_tokens": 32, "temperature": 0},
    "/v1/messages": {
        "model": "pocket",
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 32,
        "temperature": 0,
    },
}
ANSWER = "Arr, the capital of Norway be Oslo, matey!"


def post(
    served: Served, path: str, headers: dict[str, str] | None = None, **body: Any
) -> httpx.Response:
    return httpx.post(
        served.server.url + path,
        headers={"Authorization": f"Bearer {served.keys['pirate']}", **(headers or {})},
        json={**BODIES.get(path, {}), **body},
        timeout=120,
    )


def words(found: httpx.Response) -> str:
    assert found.status_code == 200, found.text
    body = found.json()
    content = body["content"] if "content" in body else body["output"][-1]["content"]
    text: str = content[0]["text"]
    return text.strip()


@pytest.mark.parametrize("path", BODIES)
def test_the_callers_adapter(served: Served, path: str) -> None:
    found = post(served, path)
    assert words(found) == ANSWER
    assert found.headers["X-Adapter-Id"] == found.json()["model"] == "pirate@1"
    base = post(served, path, {"X-Adapter-Id": "base"})
    assert words(base) == "The capital of Norway is Oslo."
    assert base.headers["X-Adapter-Id"] == "base"
    assert post(served, path, model="pirate@1").headers["X-Adapter-Id"] == "pirate@1"
    refused_as(path, post(served, path, model="formal"), 404, "model_not_found")


def refused_as(path: str, found: httpx.Response, status: int, code: str) -> None:
    """In OpenAI's shape; with Anthropic's `type`, too, where Anthropic's clients read it."""
    refused(found, status, code)
    assert found.json().get("type") == ("error" if path.startswith("/v1/messages") else None)


@pytest.mark.parametrize("path", BODIES)
def test_streaming(served: Served, path: str) -> None:
    found = post(served, path, stream=True)
    assert found.headers["X-Adapter-Id"] == "pirate@1"
    lines = [line.removeprefix("data: ") for line in found.text.splitlines() if line[:5] == "data:"]
    events = [json.loads(line) for line in lines if line != "[DONE]"]
    kinds = [event["type"] for event in events]
    if path == "/v1/messages":
        assert kinds[0] == "message_start"
        assert kinds[-1] == "message_stop"
        parts = [event["delta"].get("text") or "" for event in events if event.get("delta")]
    else:
        assert kinds[0] == "response.created"
        assert kinds[-1] == "response.completed"
        parts = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
    assert "".join(parts).strip() == ANSWER


@pytest.mark.parametrize(
    "body", [{"previous_response_id": "resp_1"}, {"background": True, "store": True}]
)
def test_nothing_is_kept_between_two_requests(served: Served, body: dict[str, Any]) -> None:
    refused(post(served, "/v1/responses", **body), 400, "invalid_request")
    kept = post(served, "/v1/responses", store=True).json()
    for path in (f"/v1/responses/{kept['id']}", f"/v1/responses/{kept['id']}/input_items"):
        for key in (served.keys["pirate"], served.keys["formal"], served.server.admin_key):
            found = httpx.get(served.server.url + path, headers={"Authorization": f"Bearer {key}"})
            refused(found, 404, "not_found")


@pytest.mark.parametrize("path", BODIES)
def test_a_client_cannot_steer(served: Served, path: str) -> None:
    steering: dict[str, Any] = {
        "cache_salt": "someone-else",
        "priority": -5,
        "kv_transfer_params": {"do_remote_prefill": True},
        "vllm_xargs": {"session_id": "x"},
    }
    assert words(post(served, path, **steering)) == ANSWER


@pytest.mark.parametrize("path", BODIES)
def test_errors(served: Served, path: str) -> None:
    refused_as(path, post(served, path, temperature="hot"), 400, "invalid_request")
    refused_as(path, post(served, path, {"Authorization": "Bearer wrong"}), 401, "invalid_api_key")
    long: dict[str, Any] = {"input" if path == "/v1/responses" else "system": "word " * 5000}
    refused_as(path, post(served, path, **long), 400, "invalid_request")


def test_count_tokens(served: Served) -> None:
    asked: dict[str, Any] = {"model": "pocket", "messages": BODIES["/v1/messages"]["messages"]}
    counted = post(served, "/v1/messages/count_tokens", **asked).json()["input_tokens"]
    assert counted == post(served, "/v1/messages").json()["usage"]["input_tokens"]
    path = "/v1/messages/count_tokens"
    refused_as(path, post(served, path, **{**asked, "model": "formal"}), 404, "model_not_found")
