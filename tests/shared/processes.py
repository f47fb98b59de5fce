"""Servers and other processes that a test starts and ends itself, and who of them is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

SECONDS = 60
START_SECONDS = 180


@contextmanager
def started(
    data: Path, port: int, settings: Mapping[str, str], output: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[str]]:
    """A server in a session of its own, killed afterwards if it is still there."""
    process = start(data, port, settings, output)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=SECONDS)


def start(
    data: Path, port: int, settings: Mapping[str, str], output: int = subprocess.PIPE
) -> subprocess.Popen[str]:
    """`bapo serve` on these data, with the admin key `k`; its words go to `output`."""
    return subprocess.Popen(
        [sys.executable, "-m", "bapo", "serve", "--port", str(port), "--data-dir", str(data)],
        env={**os.environ, "BAPO_ADMIN_KEY": "k", **settings},
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=interruptible,
    )


def interruptible() -> None:
    """For `preexec_fn`: a shell starts background jobs deaf to Ctrl-C, and they pass that on."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def members(session: int) -> list[int]:
    """The living processes of a session, which are whatever its first one started."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


def nothing_left(session: int) -> bool:
    """Whether all of a session's processes are gone, or soon are."""
    deadline = time.monotonic() + SECONDS
    while members(session):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def ready(port: int) -> bool:
    """Whether a server listens on this port and has its engine."""
    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/health/ready", timeout=5)
    except httpx.TransportError:
        return False
    return answer.status_code == httpx.codes.OK


def wait_until_ready(process: subprocess.Popen[str], port: int) -> None:
    """Fails where the process ends, or takes minutes."""
    deadline = time.monotonic() + START_SECONDS
    while not ready(port):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
