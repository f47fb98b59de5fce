"""The server itself is killed with -9 in the middle of answers, of waiting and of uploads.

The next one on the same data serves everybody as before: nothing is half published, and nothing is
held by those who died.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from pathlib import Path

import httpx

from processes import nothing_left, started, wait_until_ready
from served import QUESTION, TASTES
from serving import Server, free_port

SMALL = {"BAPO_KV_CACHE_MEBIBYTES": "64", "BAPO_MAX_LORAS": "2", "BAPO_DTYPE": "float32"}
SECONDS = 60


def stream(server: Server, key: str, lines: list[str]) -> None:
    """A long answer's lines, until it ends or the server does."""
    body = {
        "messages": [{"role": "user", "content": QUESTION}],
        "stream": True,
        "ignore_eos": True,
        "max_tokens": 480,
    }
    url, headers = f"{server.url}/v1/chat/completions", {"Authorization": f"Bearer {key}"}
    with (
        contextlib.suppress(httpx.TransportError),
        httpx.stream("POST", url, headers=headers, json=body, timeout=SECONDS) as answer,
    ):
        lines.extend(line for line in answer.iter_lines() if line)


def keep_uploading(server: Server, folders: dict[str, Path], made: list[str]) -> None:
    """Versions of one adapter, one after the other until the server is gone; `made` has their taste
    in the order of their numbers, the last one's before it is known to be there."""
    with contextlib.suppress(httpx.TransportError):
        while True:
            made.append(TASTES[len(made) % len(TASTES)])
            server.upload("grown", folders[made[-1]])


def test_the_next_server_has_everything_and_holds_nothing(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    port = free_port(0)
    url = f"http://127.0.0.1:{port}"
    made, lines = list[str](), [list[str]() for _ in range(2 * len(TASTES))]
    with started(tmp_path, port, SMALL, subprocess.DEVNULL) as process:
        wait_until_ready(process, port)
        server = Server(url, "k", process.pid)
        for taste, folder in folders.items():
            server.upload(taste, folder)
        keys = {taste: server.create_user(f"likes-{taste}", taste) for taste in TASTES}
        before = {taste: server.ask(keys[taste], QUESTION) for taste in TASTES}
        works = [
            threading.Thread(target=stream, args=(server, keys[TASTES[n % 3]], into))
            for n, into in enumerate(lines)
        ]
        works.append(threading.Thread(target=keep_uploading, args=(server, folders, made)))
        for work in works:
            work.start()
        until = time.monotonic() + SECONDS
        while True:
            slots = server.call("GET", "/admin/engine")["slots"]
            if slots["running"] and slots["waiting"] and len(made) > 2 and any(map(len, lines)):
                break
            assert time.monotonic() < until, (slots, len(made))
        process.kill()
        for work in works:
            work.join(SECONDS)
        assert nothing_left(process.pid)

    with started(tmp_path, port, SMALL, subprocess.DEVNULL) as process:
        wait_until_ready(process, port)
        server = Server(url, "k", process.pid)
        assert {taste: server.ask(keys[taste], QUESTION) for taste in TASTES} == before
        slots = server.call("GET", "/admin/engine")["slots"]
        assert (slots["running"], slots["waiting"]) == (0, 0)
        grown = server.call("GET", "/admin/adapters/grown")
        numbers = [version["version"] for version in grown["versions"]]
        assert sorted(numbers) in ([*range(1, len(made))], [*range(1, len(made) + 1)])
        assert grown["active_version"] == len(numbers)  # with its version, or not at all
        for number in numbers:
            said = server.ask("k", QUESTION, f"grown@{number}")
            assert said == (before[made[number - 1]][0], f"grown@{number}")
        assert server.call("POST", "/admin/store/verify")["damaged"] == {}
        assert [*(tmp_path / "store" / "drafts").iterdir()] == []
        assert server.upload("grown", folders[TASTES[0]])["version"] == len(numbers) + 1
