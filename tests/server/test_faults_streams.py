"""Streams that come to an unusual end, and very many of them: nothing stays taken."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from raw_http import answer, connected, head
from served import QUESTION, TASTES, Served, admin, chat, refused, upload

CHAT = "/v1/chat/completions"
LONG = {"ignore_eos": True, "max_tokens": 300, "stream": True, "temperature": 1.0}
CROWD = 500


def metric(served: Served, name: str) -> float:
    """The sum of one of the engine's metrics."""
    text = admin_get(served, "/metrics").text
    samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
    return sum(sample.value for sample in samples if sample.name == name)


def admin_get(served: Served, path: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {served.server.admin_key}"}
    return httpx.get(served.server.url + path, headers=headers, timeout=30)


def slots(served: Served) -> dict[str, int]:
    found: dict[str, int] = admin_get(served, "/admin/engine").json()["slots"]
    return found


def comes_true(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def request(key: str, *headers: str, **options: Any) -> bytes:
    """A chat request, byte for byte."""
    asked = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, **options}
    body = json.dumps(asked).encode()
    lines = ("Content-Type: application/json", f"Content-Length: {len(body)}", *headers)
    return head("POST", CHAT, key, *lines) + body


def begin(connection: socket.socket, asked: bytes) -> None:
    """Ask, and see the first of the answer."""
    connection.sendall(asked)
    assert connection.recv(1000).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("how", ["closed", "half closed", "reset"])
def test_a_client_that_leaves_ends_the_generation(served: Served, how: str) -> None:
    with connected(served.server.url) as connection:
        begin(connection, request(served.keys["pirate"], n=32, **LONG))
        assert comes_true(lambda: metric(served, "vllm:num_requests_running") == 32)
        if how == "half closed":
            connection.shutdown(socket.SHUT_WR)
            assert comes_true(lambda: slots(served)["running"] == 0)
        if how == "reset":
            linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    assert comes_true(lambda: slots(served)["running"] == 0)
    assert comes_true(lambda: metric(served, "vllm:num_requests_running") == 0)
    made = metric(served, "vllm:generation_tokens_total")
    chat(served, served.keys["formal"], max_tokens=3, ignore_eos=True)
    assert metric(served, "vllm:generation_tokens_total") <= made + 3


def test_a_client_that_leaves_the_queue_gives_up_its_place(served: Served) -> None:
    with ExitStack() as open_:
        for taste in TASTES[:2]:  # they take both slots
            stream = open_.enter_context(connected(served.server.url))
            begin(stream, request(served.keys[taste], n=32, **LONG))  # not over before the test is
        with connected(served.server.url) as waiting:
            waiting.sendall(request(served.keys[TASTES[2]]))
            assert comes_true(lambda: slots(served)["waiting"] == 1, 2)
        assert comes_true(lambda: slots(served)["waiting"] == 0, 1)
        assert slots(served)["running"] == 2
    assert comes_true(lambda: slots(served)["running"] == 0)


def test_a_client_that_does_not_read_is_cut_off(served: Served) -> None:
    """Or it would keep its adapter's slot for as long as it likes."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        url = httpx.URL(served.server.url)
        connection.connect((url.host, url.port))
        # Much to say: all the likeliest tokens at every place, for several answers.
        much = {**LONG, "n": 16, "logprobs": True, "top_logprobs": 20}
        begin(connection, request(served.keys["pirate"], **much))
        assert comes_true(lambda: metric(served, "vllm:num_requests_running") == 0, 60)
        assert slots(served)["running"] == 1  # the answer is not taken off
        assert comes_true(lambda: slots(served)["running"] == 0, 30)


def test_an_answer_that_has_begun_outlives_its_key(served: Served) -> None:
    """Who may ask is decided when he asks; what is running is bounded anyway."""
    made = served.server.call("POST", "/admin/users/likes-pirate/keys", json={})
    with connected(served.server.url) as connection:
        connection.sendall(request(made["key"], **LONG))
        assert connection.recv(1000, socket.MSG_PEEK)
        served.server.call("DELETE", f"/admin/keys/{made['key'].split('_')[1]}")
        refused(chat(served, made["key"]), 401, "invalid_api_key")
        status, headers, text = answer(connection)
    assert (status, headers["x-adapter-id"]) == (200, "pirate@1")
    assert text.endswith(b"data: [DONE]\n\n")


def test_an_upload_that_breaks_off_leaves_nothing(served: Served) -> None:
    files = psutil.Process(served.server.process_id).num_fds()
    before = admin(served, "GET", "/adapters").json()
    weights = (served.folders["pirate"] / "adapter_model.safetensors").read_bytes()
    part = (
        'Content-Disposition: form-data; name="adapter_model"; filename="adapter_model.safetensors"'
    )
    body = f"--x\r\n{part}\r\n\r\n".encode() + weights * 4
    lines = ("Content-Type: multipart/form-data; boundary=x", f"Content-Length: {2 * len(body)}")
    with connected(served.server.url) as connection:
        path = "/admin/adapters/half/versions"
        connection.sendall(head("POST", path, served.server.admin_key, *lines) + body)
    scratch = served.data_dir / "store" / "drafts"
    assert comes_true(lambda: psutil.Process(served.server.process_id).num_fds() <= files)
    assert list(scratch.iterdir()) == []
    assert admin(served, "GET", "/adapters").json() == before


def test_an_upload_over_its_limit(served: Served) -> None:
    """Told or untold; of an untold one no more is taken than the limit."""
    path, limit = "/admin/adapters/too-large/versions", 17 * 2**20
    form = "Content-Type: multipart/form-data; boundary=x"
    with connected(served.server.url) as connection:
        told = f"Content-Length: {limit + 1}"
        connection.sendall(head("POST", path, served.server.admin_key, form, told))
        status, _, text = answer(connection)
        assert (status, json.loads(text)["error"]["code"]) == (413, "request_too_large")
    with connected(served.server.url) as connection:
        chunked = "Transfer-Encoding: chunked"
        part = b'--x\r\nContent-Disposition: form-data; name="adapter_model"; filename="a"\r\n\r\n'
        connection.sendall(head("POST", path, served.server.admin_key, form, chunked))
        connection.sendall(b"%x\r\n%s\r\n" % (len(part), part))
        piece = b"%x\r\n" % 2**20 + bytes(2**20) + b"\r\n"
        for _ in range(18):
            connection.sendall(piece)
        status, _, text = answer(connection)
        assert (status, json.loads(text)["error"]["code"]) == (413, "request_too_large")
    assert admin(served, "GET", "/adapters/too-large").status_code == 404


def test_two_uploads_of_one_adapter_at_once(served: Served) -> None:
    """Each has a version of its own, and the bytes are the right ones'."""

    def one(taste: str) -> Any:
        made = upload(served, "twice", served.folders[taste], activate="true")
        assert made.status_code == 201, made.text
        return made.json()

    with ThreadPoolExecutor() as threads:
        made = list(threads.map(one, TASTES))
    assert sorted(version["version"] for version in made) == [1, 2, 3]
    for version, taste in zip(made, TASTES, strict=True):
        reference = {"X-Adapter-Id": f"twice@{version['version']}"}
        said = chat(served, served.server.admin_key, headers=reference).json()
        own = chat(served, served.keys[taste]).json()
        assert said["choices"][0]["message"] == own["choices"][0]["message"]
    served.server.call("DELETE", "/admin/adapters/twice")


def test_one_upload_sent_twice_at_once_is_one_version(served: Served) -> None:
    folder: Path = served.folders["formal"]

    def one(_: int) -> httpx.Response:
        parts = {
            file.partition(".")[0]: (file, (folder / file).read_bytes())
            for file in ("adapter_config.json", "adapter_model.safetensors")
        }
        return httpx.post(
            f"{served.server.url}/admin/adapters/sent-at-once/versions",
            headers={
                "Authorization": f"Bearer {served.server.admin_key}",
                "Idempotency-Key": "the-same",
            },
            files=parts,
            timeout=60,
        )

    with ThreadPoolExecutor() as threads:
        answers = list(threads.map(one, range(4)))
    assert {a.status_code for a in answers} <= {201, 409}, [a.text for a in answers]
    assert {a.json()["version"] for a in answers if a.status_code == 201} == {1}
    described = served.server.call("GET", "/admin/adapters/sent-at-once")
    assert [version["version"] for version in described["versions"]] == [1]
    served.server.call("DELETE", "/admin/adapters/sent-at-once")


async def _crowd(served: Served, users: list[dict[str, str]], **options: Any) -> list[Any]:
    """All at once: the status and the last event of everybody's answer."""

    async def one(client: httpx.AsyncClient, who: dict[str, str]) -> Any:
        body = {"messages": [{"role": "user", "content": QUESTION}], **options}
        async with client.stream("POST", CHAT, json=body, headers=who) as said:
            lines = [line async for line in said.aiter_lines() if line]
            return said.status_code, lines[-1], said.headers

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=served.server.url, timeout=240, limits=limits) as client:
        return await asyncio.gather(*(one(client, who) for who in users))


def test_500_streams_at_once(served: Served) -> None:
    key = {"Authorization": f"Bearer {served.server.admin_key}"}
    users = [
        {**key, "X-User-Id": f"crowd-{number % 50}", "X-Adapter-Id": ("base", "pirate")[number % 2]}
        for number in range(CROWD)
    ]
    short = {"stream": True, "max_tokens": 8, "ignore_eos": True}
    asyncio.run(_crowd(served, users[:100], **short))  # what is made at the first use, stays
    process = psutil.Process(served.server.process_id)
    assert comes_true(lambda: slots(served)["running"] == 0)
    files, memory = process.num_fds(), process.memory_info().rss
    answers = asyncio.run(_crowd(served, users, **short))
    assert Counter((status, last) for status, last, _ in answers) == {(200, "data: [DONE]"): CROWD}
    labels = Counter(headers["x-adapter-id"] for _, _, headers in answers)
    assert labels == {"base": CROWD // 2, "pirate@1": CROWD // 2}
    assert comes_true(lambda: slots(served)["running"] == 0)
    assert comes_true(lambda: process.num_fds() <= files + 2), (process.num_fds(), files)
    assert process.memory_info().rss < memory + 64 * 2**20


def test_one_users_many_requests_do_not_keep_others_out(served: Served) -> None:
    """32 of his run at once and as many wait, as the fixture's server is set."""
    greedy = [{"Authorization": f"Bearer {served.keys['pirate']}"}] * 80
    with ThreadPoolExecutor(1) as other:
        storm = other.submit(
            lambda: asyncio.run(_crowd(served, greedy, ignore_eos=True, max_tokens=200))
        )
        assert comes_true(lambda: slots(served)["running"] == 1)
        began = time.monotonic()
        assert chat(served, served.keys["formal"], max_tokens=5).status_code == 200
        mine = time.monotonic() - began
        answers = storm.result()
        whole = time.monotonic() - began
    assert Counter(status for status, _, _ in answers) == {200: 64, 429: 16}
    said = [(last, headers) for status, last, headers in answers if status == 429]
    assert {json.loads(last)["error"]["code"] for last, _ in said} == {"too_many_requests"}
    assert all(int(headers["retry-after"]) >= 1 for _, headers in said)
    assert mine < whole
