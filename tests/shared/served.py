"""The running server as the end-to-end tests see it: what was set up, and how it is spoken to.

Owns plain HTTP calls and the check of an error's shape; the fixtures are in `conftest.py`.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from serving import Server

TASTES = ("pirate", "playful", "formal")
METRICS_KEY = "opens-the-metrics-only"
QUESTION = "What is the capital of Norway?"
FILES = {
    "adapter_config": "adapter_config.json",
    "adapter_model": "adapter_model.safetensors",
    "manifest": "manifest.json",
}


@dataclass(frozen=True)
class Served:
    """The running server, its users' keys by taste, the adapter folders it was given, its data."""

    server: Server
    keys: dict[str, str]
    folders: dict[str, Path]
    data_dir: Path


def chat(
    served: Served, key: str | None, *, headers: dict[str, str] | None = None, **body: Any
) -> httpx.Response:
    sent = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.post(
        f"{served.server.url}/v1/chat/completions",
        headers={**sent, **(headers or {})},
        json={
            "messages": [{"role": "user", "content": QUESTION}],
            "temperature": 0,
            "max_tokens": 32,
            **body,
        },
        timeout=120,
    )


def refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert error["message"]
    return error


def upload(
    served: Served, adapter_id: str, folder: Path, key: str | None = None, **form: str
) -> httpx.Response:
    parts = {
        part: (name, (folder / name).read_bytes())
        for part, name in FILES.items()
        if (folder / name).exists()
    }
    return httpx.post(
        f"{served.server.url}/admin/adapters/{adapter_id}/versions",
        headers={"Authorization": f"Bearer {key or served.server.admin_key}"},
        files=parts,
        data=form,
        timeout=60,
    )


def admin(served: Served, method: str, path: str, **options: Any) -> httpx.Response:
    return httpx.request(
        method,
        f"{served.server.url}/admin{path}",
        headers={"Authorization": f"Bearer {served.server.admin_key}"},
        timeout=60,
        **options,
    )


def logged(server_log: Path, request_id: str) -> dict[str, Any]:
    """The log's line on the request, which is written when the request has ended."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        for line in server_log.read_text().splitlines():
            if f'"{request_id}"' in line and (entry := json.loads(line))["event"] == "request":
                found: dict[str, Any] = entry
                return found
        time.sleep(0.02)
    raise AssertionError(f"no line on {request_id} in {server_log}")


def measured(url: str, key: str) -> dict[tuple[str, str], float]:
    """The samples of /metrics by name and adapter (or other label), summed over the rest."""
    answer = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {key}"}, timeout=30)
    assert answer.status_code == 200, answer.text
    sums: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            at = sample.name, sample.labels.get("adapter", sample.labels.get("limit", ""))
            sums[at] = sums.get(at, 0.0) + sample.value
    return sums
