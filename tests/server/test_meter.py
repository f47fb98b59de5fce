"""Each request is observed once: the log's line and the metrics say what really happened."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from server.meter import Meter, Metering, Outcome, Phase
from server.metrics import AdapterLabels

from served import METRICS_KEY, QUESTION, Served, chat, logged, measured, refused

LONG = {"ignore_eos": True, "max_tokens": 400}


def log_of(served: Served) -> Path:
    return served.data_dir.parent / "server.log"


def named() -> tuple[str, dict[str, str]]:
    request_id = f"test-{secrets.token_hex(6)}"
    return request_id, {"X-Request-Id": request_id}


@pytest.mark.parametrize(
    "body",
    [{}, {"n": 3, "temperature": 1}, {"stream": True}, {"stream": True, "n": 2, "temperature": 1}],
    ids=["whole", "n", "stream", "stream-n"],
)
def test_the_line_says_what_the_answer_says(served: Served, body: dict[str, Any]) -> None:
    request_id, headers = named()
    usage = {"stream_options": {"include_usage": True}} if "stream" in body else {}
    answer = chat(served, served.keys["pirate"], headers=headers, **body, **usage)
    assert answer.headers["X-Request-Id"] == request_id
    if "stream" in body:
        told = json.loads(answer.text.split("data: ")[-2])["usage"]
    else:
        told = answer.json()["usage"]
    line = logged(log_of(served), request_id)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (
        told["prompt_tokens"],
        told["completion_tokens"],
    )
    assert (line["status"], line["outcome"], line["adapter"]) == (200, "ok", "pirate@1")
    assert line["route"] == "/v1/chat/completions"
    assert 0 < line["ttft_seconds"] <= line["seconds"]
    assert 0 < line["inter_token_seconds"] < line["seconds"]
    text = log_of(served).read_text()
    assert QUESTION not in text
    assert "likes-pirate" not in json.dumps(line)
    assert served.keys["pirate"] not in text


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_whose_client_has_gone(served: Served, stream: bool) -> None:
    request_id, headers = named()
    url, key = f"{served.server.url}/v1/chat/completions", served.keys["formal"]
    body = {"messages": [{"role": "user", "content": QUESTION}], "stream": stream, **LONG}
    headers["Authorization"] = f"Bearer {key}"
    if stream:
        with httpx.stream("POST", url, headers=headers, json=body, timeout=60) as answer:
            next(answer.iter_lines())
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, headers=headers, json=body, timeout=httpx.Timeout(60, read=0.7))
    line = logged(log_of(served), request_id)
    assert line["outcome"] == "aborted"
    assert line["prompt_tokens"] > 0
    assert 0 < line["completion_tokens"] < LONG["max_tokens"]


def test_refused_requests_have_their_lines(served: Served) -> None:
    request_id, headers = named()
    refused(chat(served, "bapo_no_key", headers=headers), 401, "invalid_api_key")
    line = logged(log_of(served), request_id)
    assert (line["status"], line["outcome"], line["user"]) == (401, "refused", None)
    request_id, headers = named()
    gone = headers | {"X-Adapter-Id": "not-there"}
    refused(chat(served, served.keys["formal"], headers=gone), 404, "model_not_found")
    assert logged(log_of(served), request_id)["adapter"] is None


@pytest.mark.parametrize("bad", ["a" * 200, 'x"y', "a b", "nämlich", ""])
def test_an_id_that_is_not_plain_is_replaced(served: Served, bad: str) -> None:
    answer = httpx.get(
        f"{served.server.url}/health/live", headers=[(b"X-Request-Id", bad.encode("latin-1"))]
    )
    given = answer.headers["X-Request-Id"]
    assert given != bad
    assert len(given) == 32


def test_ids_of_completions_are_not_the_clients_to_choose(served: Served) -> None:
    request_id, headers = named()
    answer = chat(served, served.keys["formal"], headers=headers)
    assert request_id not in answer.json()["id"]


def test_metrics_by_adapter(served: Served) -> None:
    url = served.server.url
    before = measured(url, METRICS_KEY)
    usage = chat(served, served.keys["playful"]).json()["usage"]
    chat(served, served.keys["playful"], stream=True)
    chat(served, served.keys["playful"], headers={"X-Adapter-Id": "base"})
    after = measured(url, METRICS_KEY)

    def grown(name: str, adapter: str) -> float:
        return after[name, adapter] - before.get((name, adapter), 0.0)

    assert grown("bapo_requests_total", "playful") == 2
    assert grown("bapo_requests_total", "base") == 1
    assert grown("bapo_prompt_tokens_total", "playful") == 2 * usage["prompt_tokens"]
    assert grown("bapo_completion_tokens_total", "playful") == 2 * usage["completion_tokens"]
    for name in ("time_to_first_token", "inter_token", "queue_wait"):
        assert grown(f"bapo_{name}_seconds_count", "playful") == 2
    assert grown("bapo_longest_pause_seconds_count", "playful") == 1
    hits, misses = (grown(f"bapo_adapter_{kind}_total", "playful") for kind in ("hits", "misses"))
    assert hits + misses == 2
    assert after["bapo_adapter_load_seconds_count", "playful"] >= 1
    assert after["bapo_adapter_resident_bytes", "playful"] > 0
    assert after["bapo_engine_up", ""] == 1
    assert 0 <= after["bapo_registry_stale_seconds", ""] < 60
    assert not any(name.startswith("vllm:lora_requests_info") for name, _ in after)
    assert any(name.startswith("vllm:") for name, _ in after)


def test_the_metrics_key_opens_the_metrics_and_nothing_else(served: Served) -> None:
    headers = {"Authorization": f"Bearer {METRICS_KEY}"}
    assert httpx.get(f"{served.server.url}/metrics", headers=headers).status_code == 200
    for path in ("/admin/users", "/v1/models"):
        refused(httpx.get(f"{served.server.url}{path}", headers=headers), 401, "invalid_api_key")
    theirs = {"Authorization": f"Bearer {served.keys['formal']}"}
    refused(httpx.get(f"{served.server.url}/metrics", headers=theirs), 403, "not_allowed")


def test_a_log_for_the_eye() -> None:
    code = (
        "import structlog; from server.request_log import configure_logging\n"
        "configure_logging('console'); structlog.get_logger().info('hello', a=1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "hello" in done.stderr
    assert "a=1" in done.stderr
    assert "{" not in done.stderr


def test_labels_are_bounded_and_the_first_keep_theirs() -> None:
    labels = AdapterLabels(2)
    seen = [labels.of(name) for name in ("a", "b", "c", "a", "base", None, "other", "none")]
    assert seen == ["a", "b", "other", "a", "base", "none", "other", "other"]


def test_phases_follow_one_another() -> None:
    meter = Meter(began=10.0, began_at=1000.0, ended=20.0)
    meter.phases = [(Phase.RESOLVE, 11.0), (Phase.ADMIT, 12.0), (Phase.GENERATE, 15.0)]
    assert meter.seconds_in(Phase.ADMIT) == 3.0
    assert meter.seconds_in(Phase.GENERATE) == 5.0
    assert meter.seconds_in(Phase.LOAD) is None


def through(app: Starlette, seen: list[Meter], observer: Any = None) -> httpx.Response:
    async def ask() -> httpx.Response:
        wrapped = Metering(app, [*([observer] if observer else []), seen.append])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(wrapped)) as client:
            return await client.get("http://here/")

    return asyncio.run(ask())


async def _hello(request: Request) -> Response:
    return PlainTextResponse("hello")


def test_an_observer_that_fails_harms_nobody() -> None:
    def broken(meter: Meter) -> None:
        raise ValueError("a bug")

    seen = list[Meter]()
    answer = through(Starlette(routes=[Route("/", _hello)]), seen, broken)
    assert (answer.text, seen[0].outcome, seen[0].route) == ("hello", Outcome.OK, "/")


DOCS = Path(__file__).resolve().parents[2] / "docs"
METRIC = re.compile(r"\b(?:bapo_[a-z_]+|vllm:[a-z_]+)")


def test_the_dashboard_and_the_alerts_name_what_there_is(served: Served) -> None:
    chat(served, served.keys["formal"], stream=True)
    chat(served, served.keys["pirate"])
    chat(served, served.keys["playful"])  # one more than there are slots and memory: evictions
    there = {name for name, _ in measured(served.server.url, METRICS_KEY)}
    there.add("bapo_limits_refused_total")  # has no sample before the first refusal
    for page in ("grafana.json", "operations.md"):
        named = set(METRIC.findall((DOCS / page).read_text(encoding="utf-8")))
        assert len(named) > 15
        named.discard("vllm:lora_requests_info")  # of which the page says why it is left out
        lacking = {name for name in named if not {name, f"{name}_bucket"} & there}
        assert not lacking, page
