"""An engine that does not come back, and a server that is stopped while it answers."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from rich.console import Console

from adapters.base import POCKET

from served import QUESTION, refused
from serving import Server, serving

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model of its own, which can be taken away."""
    folder = tmp_path_factory.mktemp("models") / "mine"
    shutil.copytree(POCKET, folder)
    return folder


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {"BAPO_MODEL": str(model), "BAPO_DRAIN_SECONDS": "60"}
    work = tmp_path_factory.mktemp("supervised")
    with serving(work, Console(quiet=True), port=0, settings=settings) as running:
        yield running


def engine_process(server: Server) -> psutil.Process:
    family = psutil.Process(server.process_id).children(recursive=True)
    (engine,) = [process for process in family if process.ppid() != server.process_id]
    return engine


def health(server: Server) -> httpx.Response:
    return httpx.get(f"{server.url}/health/ready", timeout=10)


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_engine_that_does_not_come_back_is_explained(server: Server, model: Path) -> None:
    shutil.move(model, model.with_name("away"))
    try:
        engine_process(server).kill()
        seen: list[httpx.Response] = []

        def failed_three_times() -> bool:
            seen.append(health(server))
            return "3 times" in seen[-1].text

        wait_for(failed_three_times, 60)
        error = refused(seen[-1], 503, "engine_unavailable")
        assert "failed to start again 3 times, the last time by" in error["message"]
        assert "the next try is in" in error["message"]
        assert str(model.parent) not in seen[-1].text
        waits = {
            tries: [int(one.headers["Retry-After"]) for one in seen if f"again {tries}" in one.text]
            for tries in ("once", "3 times")
        }
        assert all(1 <= wait <= 120 for told in waits.values() for wait in told)
        assert max(waits["once"]) < max(waits["3 times"])  # as the pauses grow
        assert httpx.get(f"{server.url}/health/live").status_code == 200
        headers = {"Authorization": f"Bearer {server.admin_key}"}
        listed = httpx.get(f"{server.url}/admin/adapters", headers=headers)
        assert listed.status_code == 200  # what needs no engine goes on
    finally:
        shutil.move(model.with_name("away"), model)
    wait_for(lambda: health(server).status_code == 200, 120)
    assert server.ask(server.admin_key, QUESTION)[1] == "base"
    assert server.call("GET", "/admin/engine")["restarts"] == 1


def test_a_stop_takes_nothing_new_and_lets_the_rest_finish(server: Server) -> None:
    """And a second one does not hurry it. `serving` sees to it that the status is 0."""
    lines: list[str] = []

    def long_stream() -> None:
        with httpx.stream(
            "POST",
            f"{server.url}/v1/chat/completions",
            headers={"Authorization": f"Bearer {server.admin_key}"},
            json={
                "messages": [{"role": "user", "content": QUESTION}],
                "stream": True,
                "ignore_eos": True,
                "max_tokens": 400,
                "n": 16,  # so that it outlasts the looks below, on a fast machine, too
            },
            timeout=120,
        ) as answer:
            lines.extend(line for line in answer.iter_lines() if line)

    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port)) as idle:
        stream = threading.Thread(target=long_stream)
        stream.start()
        wait_for(lambda: len(lines) > 2, 30)
        os.kill(server.process_id, signal.SIGTERM)
        idle.settimeout(10)
        assert idle.recv(1) == b""  # it was closed
    with pytest.raises(httpx.ConnectError):
        health(server)
    assert lines[-1] != "data: [DONE]"
    os.kill(server.process_id, signal.SIGTERM)
    stream.join(60)
    assert lines[-1] == "data: [DONE]"
