"""The server's contract over HTTP: who may ask for what, how, and what a refusal looks like."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from served import QUESTION, Served, chat, refused


@pytest.mark.parametrize(
    ("headers", "body", "label"),
    [
        ({}, {}, "pirate@1"),
        ({}, {"model": "pocket"}, "pirate@1"),
        ({"X-Adapter-Id": "base"}, {}, "base"),
        ({}, {"model": "base"}, "base"),
        ({"X-Adapter-Id": "pirate"}, {}, "pirate@1"),
        ({"X-Adapter-Id": "pirate@1"}, {}, "pirate@1"),
        ({"X-Amzn-SageMaker-Adapter-Identifier": "pirate"}, {}, "pirate@1"),
        ({}, {"model": "pirate"}, "pirate@1"),
        ({}, {"model": "pirate@1"}, "pirate@1"),
        ({}, {"model": "pocket:pirate"}, "pirate@1"),
        ({"X-Adapter-Id": "pirate"}, {"model": "pirate@1"}, "pirate@1"),
        ({"X-Adapter-Id": "base"}, {"model": "pocket"}, "base"),
    ],
)
def test_selection(
    served: Served, headers: dict[str, str], body: dict[str, str], label: str
) -> None:
    answer = chat(served, served.keys["pirate"], headers=headers, **body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["X-Adapter-Id"] == label
    assert answer.json()["model"] == ("pocket" if label == "base" else label)


@pytest.mark.parametrize("name", ["nobody", "pirate@9", "pirate@x", "pirate@", "pirate@-1", "../x"])
@pytest.mark.parametrize("where", ["header", "model"])
def test_unknown_adapters_are_not_the_base(served: Served, name: str, where: str) -> None:
    headers = {"X-Adapter-Id": name} if where == "header" else {}
    body = {"model": name} if where == "model" else {}
    refused(chat(served, served.keys["pirate"], headers=headers, **body), 404, "model_not_found")


def test_forbidden_looks_like_unknown(served: Served) -> None:
    forbidden = chat(served, served.keys["pirate"], headers={"X-Adapter-Id": "formal"})
    unknown = chat(served, served.keys["pirate"], headers={"X-Adapter-Id": "formaly"})
    messages = [refused(a, 404, "model_not_found")["message"] for a in (forbidden, unknown)]
    assert messages[0].replace("formal", "formaly") == messages[1]


def test_two_different_names_are_refused(served: Served) -> None:
    answer = chat(
        served, served.server.admin_key, headers={"X-Adapter-Id": "formal"}, model="pirate"
    )
    refused(answer, 400, "invalid_request")


@pytest.mark.parametrize("key", [None, "wrong", "bapo_0_0", "bapo_" + "x" * 5000])
def test_without_a_valid_key_nothing_is_reached(served: Served, key: str | None) -> None:
    refused(chat(served, key, messages="not even valid"), 401, "invalid_api_key")


def test_a_key_that_is_not_text(served: Served) -> None:
    answer = httpx.get(
        f"{served.server.url}/v1/models", headers={b"Authorization": "Bearer ключ".encode()}
    )
    refused(answer, 401, "invalid_api_key")


def test_anthropic_style_key_header(served: Served) -> None:
    answer = chat(served, None, headers={"x-api-key": served.keys["pirate"]})
    assert answer.headers["X-Adapter-Id"] == "pirate@1"


def test_a_user_key_speaks_for_its_user_only(served: Served) -> None:
    answer = chat(served, served.keys["pirate"], headers={"X-User-Id": "likes-formal"})
    refused(answer, 403, "not_allowed")


def test_an_admin_key_may_speak_for_a_user(served: Served) -> None:
    answer = chat(served, served.server.admin_key, headers={"X-User-Id": "likes-formal"})
    assert answer.headers["X-Adapter-Id"] == "formal@1"


@pytest.mark.parametrize(
    "body",
    [
        {"messages": []},
        {"messages": "hello"},
        {"max_tokens": -1},
        {"temperature": "hot"},
        {"max_tokens": 10_000},
        {"messages": [{"role": "user", "content": "word " * 5000}]},
    ],
)
def test_requests_that_make_no_sense(served: Served, body: dict[str, Any]) -> None:
    refused(chat(served, served.keys["pirate"], **body), 400, "invalid_request")


def test_broken_json_and_unknown_routes(served: Served) -> None:
    key = {"Authorization": f"Bearer {served.server.admin_key}"}
    url = served.server.url
    broken = httpx.post(
        f"{url}/v1/chat/completions",
        content=b'{"messages": [',
        headers={**key, "Content-Type": "application/json"},
    )
    refused(broken, 400, "invalid_request")
    for path in ("/invocations", "/v1/chat/completions/batch", "/tokenize", "/docs", "/nowhere"):
        refused(httpx.post(url + path, headers=key, json={}), 404, "not_found")


def test_a_body_over_the_limit(served: Served) -> None:
    answer = httpx.post(
        f"{served.server.url}/v1/chat/completions",
        content=b" " * (9 * 1024 * 1024),
        headers={
            "Authorization": f"Bearer {served.keys['pirate']}",
            "Content-Type": "application/json",
        },
    )
    refused(answer, 413, "request_too_large")


def test_models_are_those_the_caller_may_use(served: Served) -> None:
    found = served.server.call("GET", "/v1/models", key=served.keys["pirate"])
    assert [card["id"] for card in found["data"]] == ["pocket", "pirate"]
    assert found["data"][1]["parent"] == "pocket"
    everything = served.server.call("GET", "/v1/models")
    assert {card["id"] for card in everything["data"]} >= {"pocket", "pirate", "playful", "formal"}
    missing = httpx.get(
        f"{served.server.url}/v1/models/formal",
        headers={"Authorization": f"Bearer {served.keys['pirate']}"},
    )
    refused(missing, 404, "model_not_found")


def test_health_needs_no_key_and_metrics_do(served: Served) -> None:
    assert httpx.get(f"{served.server.url}/health/live").json() == {"status": "live"}
    assert httpx.get(f"{served.server.url}/health/ready").json()["status"] == "ready"
    refused(httpx.get(f"{served.server.url}/metrics"), 401, "invalid_api_key")


def test_a_client_cannot_steer_cache_or_priority(served: Served) -> None:
    answer = chat(
        served,
        served.keys["pirate"],
        headers={"X-data-parallel-rank": "7", "X-Vllm-Priority": "-5"},
        cache_salt="someone-else",
        priority=-5,
    )
    assert answer.status_code == 200, answer.text


def test_text_completion_goes_the_same_way(served: Served) -> None:
    answer = httpx.post(
        f"{served.server.url}/v1/completions",
        headers={"Authorization": f"Bearer {served.keys['formal']}"},
        json={"prompt": f"<|user|>{QUESTION}<|end|><|assistant|>", "temperature": 0},
        timeout=120,
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["X-Adapter-Id"] == "formal@1"
