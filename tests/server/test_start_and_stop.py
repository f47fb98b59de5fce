"""A server that is stopped, or killed, at any moment of its start leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from processes import interruptible, members
from serving import free_port

SECONDS = 60


def start(data: Path, port: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bapo", "serve", "--port", str(port), "--data-dir", str(data)],
        env={**os.environ, "BAPO_ADMIN_KEY": "k"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=interruptible,
    )


def ready(port: int) -> bool:
    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/health/ready", timeout=5)
    except httpx.TransportError:
        return False
    return answer.status_code == httpx.codes.OK


def nothing_left(session: int) -> bool:
    deadline = time.monotonic() + SECONDS
    while members(session):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


@pytest.mark.parametrize("seconds", [3, 9])
def test_ctrl_c_while_starting_is_quiet(tmp_path: Path, seconds: int) -> None:
    process = start(tmp_path, free_port(0))
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: everyone hears it
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output
    assert "Traceback" not in output
    assert nothing_left(process.pid)


def test_a_killed_server_takes_its_engine_along(tmp_path: Path) -> None:
    port = free_port(0)
    process = start(tmp_path, port)
    deadline = time.monotonic() + SECONDS
    while not ready(port):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert len(members(process.pid)) > 1
    process.kill()
    process.communicate(timeout=SECONDS)
    assert nothing_left(process.pid)
