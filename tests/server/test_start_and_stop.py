"""A server that is stopped, or killed, at any moment of its start leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from processes import members, nothing_left, ready, start, started, wait_until_ready
from serving import free_port

SECONDS = 60
START_SECONDS = 180
SMALL = {"BAPO_KV_CACHE_MEBIBYTES": "64", "BAPO_MAX_LORAS": "2"}


# A server in which something fails between the engine's start and the moment somebody holds it, as
# a log that nobody reads any more did once.
CUT_OFF = """
import sys
import bapo
from server.supervisor import Supervisor

async def cut_off(self):
    self.lost = await self._start()
    raise BrokenPipeError("the log is gone")

Supervisor._begin = cut_off
sys.argv = ["bapo", "serve", *sys.argv[1:]]
bapo.main()
"""


@pytest.mark.parametrize("seconds", [3, 9])
def test_ctrl_c_while_starting_is_quiet(tmp_path: Path, seconds: int) -> None:
    process = start(tmp_path, free_port(0), {})
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: everyone hears it
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output
    assert "Traceback" not in output
    assert nothing_left(process.pid)


def test_a_second_ctrl_c_ends_answers_in_words(tmp_path: Path) -> None:
    """Where the first would have let them finish for five minutes."""
    port = free_port(0)
    with started(tmp_path, port, {**SMALL, "BAPO_DRAIN_SECONDS": "300"}) as process:
        wait_until_ready(process, port)
        with httpx.stream(
            "POST",
            f"http://127.0.0.1:{port}/v1/chat/completions",
            headers={"Authorization": "Bearer k"},
            json={
                "messages": [{"role": "user", "content": "What is the capital of Norway?"}],
                "stream": True,
                "ignore_eos": True,
                "max_tokens": 400,
                "n": 8,
            },
            timeout=SECONDS,
        ) as answer:
            lines = (line for line in answer.iter_lines() if line)
            next(lines)
            process.send_signal(signal.SIGINT)
            while ready(port):  # until it takes nothing new: the first one has been heard
                pass
            process.send_signal(signal.SIGINT)
            last = [*lines][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_unavailable"
        output, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, output
        assert nothing_left(process.pid)


def test_a_killed_server_takes_its_engine_along(tmp_path: Path) -> None:
    port = free_port(0)
    process = start(tmp_path, port, {})
    wait_until_ready(process, port)
    assert len(members(process.pid)) > 1
    process.kill()
    process.communicate(timeout=SECONDS)
    assert nothing_left(process.pid)


def test_an_engine_that_nobody_holds_ends_with_the_server(tmp_path: Path) -> None:
    where = ["--port", "0", "--data-dir", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-c", CUT_OFF, *where],
        env={**os.environ, **SMALL, "BAPO_ADMIN_KEY": "k"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=START_SECONDS)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "the log is gone" in output
    assert nothing_left(process.pid)
