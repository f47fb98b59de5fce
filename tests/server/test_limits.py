"""Limits over HTTP, on the real engine: who is over one is told when to come back."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from adapters.accounts_cli import users_app

from served import METRICS_KEY, QUESTION, Served, admin, chat, logged, measured, refused


def limited(served: Served, user: str, **bounds: int) -> str:
    """A new user with these limits; his key."""
    assert admin(served, "POST", "/users", json={"id": user}).status_code == 201
    key: str = admin(served, "POST", f"/users/{user}/keys", json={}).json()["key"]
    set_limits(served, user, **bounds)
    return key


def set_limits(served: Served, user: str, **bounds: int) -> None:
    answer = admin(served, "PUT", f"/users/{user}/limits", json=bounds)
    assert answer.status_code == 200, answer.text


def until_refused(served: Served, key: str) -> list[httpx.Response]:
    answers = [chat(served, key)]
    while answers[-1].status_code == 200 and len(answers) < 10:
        answers.append(chat(served, key))
    return answers


def test_requests_per_minute(served: Served) -> None:
    key = limited(served, "hasty", requests_per_minute=2)
    before = measured(served.server.url, METRICS_KEY)
    answers = until_refused(served, key)
    assert len(answers) in (3, 4)  # a window that turns meanwhile rounds down once
    for answer in answers:
        assert answer.headers["x-ratelimit-limit-requests"] == "2"
        assert answer.headers["x-ratelimit-reset-requests"].endswith("s")
    assert answers[0].headers["x-ratelimit-remaining-requests"] == "1"
    assert answers[-1].headers["x-ratelimit-remaining-requests"] == "0"
    error = refused(answers[-1], 429, "rate_limit_exceeded")
    assert error["type"] == "requests"
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= 120
    after = measured(served.server.url, METRICS_KEY)
    name = "bapo_limits_refused_total", "user_requests_per_minute"
    assert after[name] - before.get(name, 0) == 1
    # Nobody else is held up, and what costs nothing is not counted.
    assert chat(served, served.keys["formal"]).status_code == 200
    headers = {"Authorization": f"Bearer {key}"}
    assert httpx.get(f"{served.server.url}/v1/models", headers=headers).status_code == 200
    set_limits(served, "hasty", requests_per_minute=50)
    assert chat(served, key).status_code == 200


def test_every_post_and_put_under_v1_counts(served: Served) -> None:
    """What writes to the database and asks no engine is not free either."""
    key = limited(served, "clicks", requests_per_minute=3)
    url, headers = f"{served.server.url}/v1/feedback", {"Authorization": f"Bearer {key}"}
    answers: list[httpx.Response] = []
    while not answers or (answers[-1].status_code < 429 and len(answers) < 10):
        keep = {"keep": len(answers) % 2 == 0}
        answers.append(httpx.put(f"{url}/consent", headers=headers, json=keep, timeout=60))
    assert len(answers) in (4, 5)  # a window that turns meanwhile rounds down once
    assert {answer.status_code for answer in answers[:-1]} == {200}
    refused(answers[-1], 429, "rate_limit_exceeded")
    said = {"completion_id": "x", "rating": "up"}
    refused(httpx.post(url, headers=headers, json=said, timeout=60), 429, "rate_limit_exceeded")
    refused(chat(served, key), 429, "rate_limit_exceeded")


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_per_minute(served: Served, stream: bool) -> None:
    key = limited(served, f"wordy-{stream}".lower(), tokens_per_minute=15)
    first = chat(served, key, stream=stream)
    assert first.status_code == 200
    assert first.headers["x-ratelimit-remaining-tokens"] == "15"
    second = chat(served, key, stream=stream)
    assert refused(second, 429, "rate_limit_exceeded")["type"] == "tokens"
    assert second.headers["x-ratelimit-remaining-tokens"] == "0"
    assert int(second.headers["Retry-After"]) >= 1


def test_answers_at_once(served: Served) -> None:
    key = limited(served, "greedy", streams=1)
    url, headers = f"{served.server.url}/v1/chat/completions", {"Authorization": f"Bearer {key}"}
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": QUESTION}],
        "stream": True,
        "ignore_eos": True,
        "max_tokens": 400,
    }
    with httpx.stream("POST", url, headers=headers, json=body, timeout=60) as answer:
        lines = answer.iter_lines()  # kept: httpx hangs up when it is collected
        next(lines)
        busy = chat(served, key)
        assert refused(busy, 429, "rate_limit_exceeded")["message"].startswith("1 requests")
        assert busy.headers["Retry-After"] == "1"
    until = time.monotonic() + 20  # the client has gone, and so has the request
    while (again := chat(served, key)).status_code == 429:
        assert time.monotonic() < until
    assert again.status_code == 200


def used(served: Served, user: str) -> int:
    spent = admin(served, "GET", f"/users/{user}/limits").json()["used"]
    return int(spent["prompt_tokens"] + spent["completion_tokens"])


def test_a_budget_for_the_month(served: Served) -> None:
    key = limited(served, "spender", tokens_per_month=30)
    total = 0
    while (answer := chat(served, key)).status_code == 200:
        total += answer.json()["usage"]["total_tokens"]
        assert total < 30 + 100
    refused(answer, 429, "insufficient_quota")
    assert 1 <= int(answer.headers["Retry-After"]) <= 31 * 86400
    until = time.monotonic() + 10
    while used(served, "spender") != total:  # written within a second or so
        assert time.monotonic() < until, (used(served, "spender"), total)
        time.sleep(0.05)
    set_limits(served, "spender", tokens_per_month=1000)
    assert chat(served, key).status_code == 200


def test_who_leaves_pays_for_what_was_generated(served: Served) -> None:
    key = limited(served, "leaver", tokens_per_month=1000)
    headers = {"Authorization": f"Bearer {key}", "X-Request-Id": "leaver-1"}
    body = {"messages": [{"role": "user", "content": QUESTION}], "ignore_eos": True}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{served.server.url}/v1/chat/completions",
            headers=headers,
            json={**body, "max_tokens": 400},
            timeout=httpx.Timeout(60, read=0.7),
        )
    line = logged(served.data_dir.parent / "server.log", "leaver-1")
    tokens = line["prompt_tokens"] + line["completion_tokens"]
    assert line["completion_tokens"] > 0
    until = time.monotonic() + 10
    while not (spent := used(served, "leaver")):
        assert time.monotonic() < until
    assert spent >= tokens - 1


def test_limits_from_the_command_line(served: Served) -> None:
    limited(served, "told")
    where = ["--server", served.server.url, "--key", served.server.admin_key, "--json"]
    set_them = CliRunner().invoke(users_app, ["limits", "told", "--streams", "3", *where])
    assert set_them.exit_code == 0, set_them.output
    shown = CliRunner().invoke(users_app, ["limits", "told", *where])
    found = json.loads(shown.output)
    assert found["limits"]["streams"] == 3
    assert found["used"]["prompt_tokens"] == 0
    CliRunner().invoke(users_app, ["limits", "told", "--default", *where])
    assert admin(served, "GET", "/users/told/limits").json()["limits"]["streams"] is None


def test_limits_are_the_administrators(served: Served) -> None:
    mine = {"Authorization": f"Bearer {served.keys['formal']}"}
    url = f"{served.server.url}/admin/users/likes-formal/limits"
    refused(httpx.get(url, headers=mine), 403, "not_allowed")
    refused(httpx.put(url, headers=mine, json={"streams": 9}), 403, "not_allowed")
    refused(admin(served, "GET", "/users/nobody-there/limits"), 404, "user_not_found")
    wrong = {"streams": -1}
    refused(admin(served, "PUT", "/users/likes-formal/limits", json=wrong), 400, "invalid_request")
