"""A log that nobody reads, or nobody can read any more, stops neither a start nor an answer."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from adapters.accounts import Role
from adapters.registry import open_registry
from server.log_pipe import Lines

from processes import nothing_left, started, wait_until_ready
from served import QUESTION
from serving import free_port

SMALL = {"BAPO_KV_CACHE_MEBIBYTES": "64", "BAPO_MAX_LORAS": "2"}
SECONDS = 120
JUNK = b"x" * 63 + b"\n"


def fill(into: int) -> None:
    """Leave not a byte of room, through a description that is not the server's."""
    os.set_blocking(into, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(into, JUNK)
    os.set_blocking(into, True)


@contextlib.contextmanager
def full_pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe as small as can be."""
    out, into = os.pipe()
    fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, 4096)
    fill(into)
    try:
        yield out, into
    finally:
        for end in (out, into):
            with contextlib.suppress(OSError):
                os.close(end)


def lines_until(out: int, request: str) -> list[dict[str, Any]]:
    """What the server has said, up to its line on this request; none is torn."""
    text, until = b"", time.monotonic() + SECONDS
    while f'"{request}"'.encode() not in text or not text.endswith(b"\n"):
        assert time.monotonic() < until
        text += os.read(out, 2**21)
    return [json.loads(line) for line in text.splitlines() if line.startswith(b"{")]


def ask(client: httpx.Client, request: str) -> None:
    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 4, "stream": True}
    answer = client.post("/v1/chat/completions", headers={"X-Request-Id": request}, json=body)
    assert answer.status_code == 200
    assert answer.text.endswith("data: [DONE]\n\n")


def test_it_serves_whoever_reads_its_log(tmp_path: Path) -> None:
    port = free_port(0)
    url, headers = f"http://127.0.0.1:{port}", {"Authorization": "Bearer k"}
    with (
        full_pipe() as (out, into),
        started(tmp_path, port, SMALL, into) as process,
        httpx.Client(base_url=url, headers=headers, timeout=SECONDS) as client,
    ):
        wait_until_ready(process, port)  # and nobody has read a byte
        fill(into)  # the server has made it larger
        for number in range(20):
            ask(client, f"unread-{number}")
        os.read(out, 2**21)
        ask(client, "read-again")
        said = lines_until(out, "read-again")
        (lost,) = [line["lines"] for line in said if line["event"] == "log_lines_lost"]
        assert lost >= 19  # the last one's may have been written after the reading
        fill(into)
        os.close(into)
        os.close(out)
        ask(client, "nobody-can")
        ask(client, "nobody-can-now")
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
        assert nothing_left(process.pid)


def test_a_first_key_that_nobody_was_shown_is_none(tmp_path: Path) -> None:
    with full_pipe() as (out, into):
        os.close(out)
        with started(tmp_path, 0, {"BAPO_ADMIN_KEY": ""}, into) as process:
            assert process.wait(SECONDS) == 1
    registry = open_registry(tmp_path)
    try:
        assert not registry.accounts.has_key(Role.ADMIN)
    finally:
        registry.close()


def test_a_line_that_is_cut_short_spoils_no_other() -> None:
    out, into = os.pipe()
    try:
        room = fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, 4096)
        os.set_blocking(into, False)
        lines = Lines(into)
        lines.write("a" * 2 * room + "\n")
        lines.write("lost\n")
        assert os.read(out, 2 * room) == b"a" * room
        lines.write("b\n")
        empty, notice, line, end = os.read(out, room).decode().split("\n")
        assert (empty, json.loads(notice)["lines"], line, end) == ("", 1, "b", "")
    finally:
        os.close(out)
        os.close(into)
