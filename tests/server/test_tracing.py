"""Traces arrive at a collector: our spans and vLLM's, in the trace that the client began.

And what users write or are answered is in none of them, in no metric and in no line of the log.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from rich.console import Console

from served import QUESTION, measured
from serving import Server, serving

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CLIENT_SPAN = "00f067aa0ba902b7"


@contextmanager
def collector() -> Iterator[tuple[str, list[Span]]]:
    """An OTLP/HTTP collector that keeps what it gets."""
    spans: list[Span] = []

    class Collect(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    spans.extend(scope.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collect) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", spans
        server.shutdown()
        thread.join()


@dataclass(frozen=True)
class Traced:
    """A server whose spans are collected, its metrics' and log's place, and a user's key."""

    server: Server
    spans: list[Span]
    log: Path
    key: str


@pytest.fixture(scope="module")
def traced(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    work = tmp_path_factory.mktemp("traced")
    with collector() as (endpoint, spans), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        settings = {
            "BAPO_OTLP_ENDPOINT": endpoint,
            "BAPO_KV_CACHE_MEBIBYTES": "64",
            "BAPO_METRICS_ADAPTERS": "1",
        }
        with serving(work, Console(quiet=True), port=0, settings=settings) as server:
            server.upload("voice", folders["pirate"])
            yield Traced(server, spans, work / "server.log", server.create_user("tracy", "voice"))


def spans_of(traced: Traced, trace: str, wanted: set[str]) -> dict[str, Span]:
    """The spans of one trace by name, as soon as the wanted ones have arrived."""
    until = time.monotonic() + 30
    found: dict[str, Span] = {}
    while not wanted <= set(found):
        assert time.monotonic() < until, sorted(found)
        time.sleep(0.05)
        found = {span.name: span for span in traced.spans if span.trace_id.hex() == trace}
    return found


def test_one_trace_from_the_client_to_the_engine(traced: Traced) -> None:
    answer = httpx.post(
        f"{traced.server.url}/v1/chat/completions",
        headers={
            "Authorization": f"Bearer {traced.key}",
            "traceparent": f"00-{TRACE}-{CLIENT_SPAN}-01",
        },
        json={"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 8},
        timeout=60,
    )
    assert answer.status_code == 200
    wanted = {"route", "resolve", "admit", "load", "generate", "llm_request"}
    found = spans_of(traced, TRACE, wanted)
    whole = found["POST /v1/chat/completions"]
    assert whole.parent_span_id.hex() == CLIENT_SPAN
    for name in ("route", "generate", "llm_request"):
        assert found[name].parent_span_id == whole.span_id
    for name in ("resolve", "admit", "load"):
        assert found[name].parent_span_id == found["route"].span_id
        assert found["route"].start_time_unix_nano <= found[name].start_time_unix_nano
        assert found[name].end_time_unix_nano <= found["route"].end_time_unix_nano
    said = {attribute.key: attribute.value for attribute in whole.attributes}
    assert said["bapo.adapter"].string_value == "voice@1"
    assert said["bapo.cold"].bool_value
    assert said["gen_ai.usage.output_tokens"].int_value == 8
    everything = str(traced.spans)
    assert "tracy" not in everything
    assert QUESTION not in everything


def texts_of_every_kind(secret: str) -> list[tuple[str, dict[str, Any], int]]:
    """Requests with the secret wherever a user's text can stand; one answer has to say it, too."""
    turns = [{"role": "system", "content": secret}, {"role": "user", "content": f"Say {secret}!"}]
    said = {"messages": turns, "max_tokens": 48}
    told = {"structured_outputs": {"choice": [secret]}}
    schema = {"type": "object", "properties": {secret: {"const": secret}}}
    tool = {"type": "function", "function": {"name": secret, "parameters": schema}}
    chat, anthropic = "/v1/chat/completions", {"model": "base", "max_tokens": 8}
    return [
        (chat, {**said, **told}, 200),
        (chat, {**said, **told, "stream": True, "logprobs": True}, 200),
        (chat, {**said, "tools": [tool], "tool_choice": "none", "user": secret}, 200),
        (chat, {**said, "stop": [secret], "metadata": {"a": secret}, "unknown": secret}, 200),
        ("/v1/completions", {"prompt": f"{secret} is", "max_tokens": 4, "echo": True}, 200),
        ("/v1/responses", {"input": secret, "instructions": secret, "max_output_tokens": 8}, 200),
        ("/v1/messages", {**anthropic, "system": secret, "messages": turns[1:]}, 200),
        (chat, {"messages": [{"role": "user", "content": 3, "x": secret}, secret]}, 400),
        (chat, {**said, "temperature": secret, "top_p": secret}, 400),
        (chat, {**said, "messages": [{"role": secret, "content": secret}]}, 200),
        (chat, {**said, "structured_outputs": {"regex": f"({secret}"}}, 400),
        (chat, {"messages": [{"role": "user", "content": secret * 1000}]}, 400),
        (chat, {**said, "model": secret}, 404),
        ("/v1/messages", {**anthropic, "messages": secret}, 400),
        ("/v1/feedback", {"completion_id": secret, "rating": "down", "correction": secret}, 404),
        ("/v1/feedback", {"prompt": secret, "chosen": secret, "rejected": [secret]}, 400),
    ]


@pytest.mark.parametrize("agreed", [False, True])
def test_texts_are_in_no_span_no_metric_and_no_line(traced: Traced, agreed: bool) -> None:
    """Nor what a user says in a request that is refused, or in feedback; kept or not."""
    secret = f"quokka-{secrets.token_hex(4)}"
    trace = secrets.token_hex(16)
    headers = {"Authorization": f"Bearer {traced.key}", "X-Adapter-Id": "base"}
    url = traced.server.url
    consent = httpx.put(f"{url}/v1/feedback/consent", headers=headers, json={"keep": agreed})
    assert consent.status_code == 200, consent.text
    begun = traced.log.read_text().count('"event": "request"')
    requests = texts_of_every_kind(secret)
    for path, body, status in requests:
        named = {**headers} if status != 404 else {"Authorization": headers["Authorization"]}
        answer = httpx.post(url + path, headers=named, json=body, timeout=60)
        assert answer.status_code == status, (path, body, answer.text)
        if "structured_outputs" in body and status == 200 and "stream" not in body:
            assert secret in answer.text
    broken = f'{{"messages": "{secret}'.encode()
    for path in ("/v1/chat/completions", "/v1/messages", "/v1/feedback"):
        assert httpx.post(url + path, headers=headers, content=broken).status_code == 400
    last = {"messages": [{"role": "user", "content": secret}], "max_tokens": 2, "stream": True}
    path = f"{url}/v1/chat/completions"
    with httpx.stream("POST", path, headers=headers, json=last) as answer:
        next(answer.iter_lines())  # and leaves
    headers["traceparent"] = f"00-{trace}-{CLIENT_SPAN}-01"
    assert httpx.post(path, headers=headers, json=last, timeout=60).status_code == 200
    spans_of(traced, trace, {"POST /v1/chat/completions", "llm_request"})  # those before are here
    metrics = httpx.get(
        f"{url}/metrics", headers={"Authorization": f"Bearer {traced.server.admin_key}"}
    )
    log = traced.log.read_text()
    assert log.count('"event": "request"') >= begun + len(requests) + 4
    spans = str(traced.spans)
    for place in (spans, metrics.text, log):
        assert len(place) > 1000
        assert secret not in place
        assert secret.upper() not in place.upper()


def test_the_setting_bounds_the_labels_of_adapters(
    traced: Traced, folders: dict[str, Path]
) -> None:
    """The first one asked for has its own; `voice` in the tests before, or here."""
    server = traced.server
    for name in ("voice", "second", "third"):
        if name != "voice":
            server.upload(name, folders["pirate"])
        server.ask(server.admin_key, QUESTION, name)
    found = measured(server.url, server.admin_key)
    labels = {label for name, label in found if name == "bapo_requests_total"}
    assert {"voice", "other"} <= labels
    assert not {"second", "third"} & labels
    assert found["bapo_requests_total", "other"] == 2
