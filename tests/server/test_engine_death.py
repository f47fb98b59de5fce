"""The engine is killed in the middle of answers: the server stays up, and nobody loses anything.

At the end the server itself is stopped in the middle of answers that take too long.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from rich.console import Console

from served import QUESTION, TASTES
from serving import Server, serving

RESTART_SECONDS = 90


@pytest.fixture(scope="module")
def server(
    folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, dict[str, str]]]:
    """A server of its own, to be hurt: an adapter and a user for each taste."""
    settings = {"BAPO_DTYPE": "float32", "BAPO_DRAIN_SECONDS": "0"}
    work = tmp_path_factory.mktemp("killed")
    with serving(work, Console(quiet=True), port=0, settings=settings) as running:
        for taste, folder in folders.items():
            running.upload(taste, folder)
        yield running, {taste: running.create_user(f"likes-{taste}", taste) for taste in folders}


def engine_process(server: Server) -> psutil.Process:
    """The one that was forked from the server's forkserver: its grandchild."""
    family = psutil.Process(server.process_id).children(recursive=True)
    (engine,) = [process for process in family if process.ppid() != server.process_id]
    return engine


def answers(server: Server, keys: dict[str, str]) -> dict[str, tuple[str, str]]:
    return {taste: server.ask(keys[taste], QUESTION) for taste in TASTES}


def long_stream(server: Server, key: str, lines: list[str], ended: threading.Event) -> None:
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": QUESTION}],
        "stream": True,
        "ignore_eos": True,
        "max_tokens": 400,
        "n": 32,  # a fast machine ends one answer before a busy one looks again
    }
    url, headers = f"{server.url}/v1/chat/completions", {"Authorization": f"Bearer {key}"}
    try:
        with httpx.stream("POST", url, headers=headers, json=body, timeout=60) as answer:
            lines.extend(line for line in answer.iter_lines() if line)
    except httpx.RemoteProtocolError:
        lines.append("cut")
    ended.set()


def assert_ends_with_an_error(lines: list[str]) -> None:
    """In OpenAI's shape, and nothing after it that says the answer were whole."""
    error = json.loads(lines[-1].removeprefix("data: "))["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("server_error", "engine_unavailable")
    assert "error" not in json.loads(lines[-2].removeprefix("data: "))


def test_a_killed_engine_comes_back_with_everybodys_adapter(
    server: tuple[Server, dict[str, str]],
) -> None:
    running, keys = server
    before = answers(running, keys)
    streams: list[tuple[list[str], threading.Event]] = []
    for taste in (*TASTES, TASTES[0]):
        lines, ended = list[str](), threading.Event()
        threading.Thread(target=long_stream, args=(running, keys[taste], lines, ended)).start()
        streams.append((lines, ended))
    while not all(len(lines) > 2 for lines, _ in streams):
        time.sleep(0.01)
    engine_process(running).kill()
    for lines, ended in streams:
        assert ended.wait(30)
        assert_ends_with_an_error(lines)

    deadline = time.monotonic() + RESTART_SECONDS
    seen = set()
    while True:
        ready = httpx.get(f"{running.url}/health/ready", timeout=10)
        seen.add(ready.status_code)
        if ready.status_code == 200 and 503 in seen:
            break
        if ready.status_code == 503:
            assert ready.headers["Retry-After"]
        assert time.monotonic() < deadline, seen
        time.sleep(0.2)
    assert answers(running, keys) == before
    state = running.call("GET", "/admin/engine")
    assert (state["restarts"], state["slots"]["running"]) == (1, 0)
    headers = {"Authorization": f"Bearer {running.admin_key}"}
    metrics = httpx.get(f"{running.url}/metrics", headers=headers, timeout=10)
    assert (metrics.status_code, "vllm:" in metrics.text) == (200, True)


def test_and_again_while_nobody_asks(server: tuple[Server, dict[str, str]]) -> None:
    running, keys = server
    before = answers(running, keys)
    engine_process(running).kill()
    deadline = time.monotonic() + RESTART_SECONDS
    headers = {"Authorization": f"Bearer {running.admin_key}"}
    while True:
        state = httpx.get(f"{running.url}/admin/engine", headers=headers, timeout=30)
        if state.status_code == 200 and state.json()["restarts"] == 2:
            break
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert answers(running, keys) == before


def test_answers_that_outlast_the_stop_end_in_words(
    server: tuple[Server, dict[str, str]],
) -> None:
    running, keys = server
    streams: list[tuple[list[str], threading.Event]] = []
    for taste in TASTES:
        lines, ended = list[str](), threading.Event()
        threading.Thread(target=long_stream, args=(running, keys[taste], lines, ended)).start()
        streams.append((lines, ended))
    while not all(len(lines) > 2 for lines, _ in streams):
        time.sleep(0.01)
    os.kill(running.process_id, signal.SIGTERM)
    for lines, ended in streams:
        assert ended.wait(10)
        assert_ends_with_an_error(lines)
    # `serving` sees to it that the status is 0.
