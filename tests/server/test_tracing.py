"""Traces arrive at a collector: our spans and vLLM's, in the trace that the client began."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from rich.console import Console

from served import QUESTION
from serving import serving

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


def test_one_trace_from_the_client_to_the_engine(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
    quiet = Console(quiet=True)
    with collector() as (endpoint, spans):
        settings = {"BAPO_OTLP_ENDPOINT": endpoint, "BAPO_KV_CACHE_MEBIBYTES": "64"}
        with serving(tmp_path, quiet, port=0, settings=settings) as server:
            server.upload("voice", folders["pirate"])
            key = server.create_user("tracy", "voice")
            answer = httpx.post(
                f"{server.url}/v1/chat/completions",
                headers={
                    "Authorization": f"Bearer {key}",
                    "traceparent": f"00-{TRACE}-{CLIENT_SPAN}-01",
                },
                json={"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 8},
                timeout=60,
            )
            assert answer.status_code == 200
            wanted = {"route", "resolve", "admit", "load", "generate", "llm_request"}
            until = time.monotonic() + 30
            found: dict[str, Span] = {}
            while not wanted <= set(found):
                assert time.monotonic() < until, sorted(found)
                time.sleep(0.05)
                found = {span.name: span for span in spans if span.trace_id.hex() == TRACE}
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
    everything = str(spans)
    assert "tracy" not in everything
    assert QUESTION not in everything
