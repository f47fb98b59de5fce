"""The online half of the demos: a real `bapo serve` in a process of its own, spoken to over HTTP.

Owns the server's process from start to a clean end, and the few admin calls of a first day:
upload an adapter, create a user, give him a key and the adapter. Nothing is done behind the
server's back: every call is one that the README's reader can make.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

START_SECONDS = 300
STOP_SECONDS = 60


@dataclass(frozen=True)
class Server:
    """A running server, the key that administers it, and the id of its process."""

    url: str
    admin_key: str
    process_id: int

    def call(self, method: str, path: str, key: str | None = None, **options: Any) -> Any:
        """One HTTP call; its JSON answer. An error answer ends the demo with its own sentence."""
        headers = {"Authorization": f"Bearer {key or self.admin_key}", **options.pop("headers", {})}
        answer = httpx.request(method, self.url + path, headers=headers, timeout=120, **options)
        if answer.is_error:
            raise SystemExit(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer.json() if answer.content else None

    def upload(self, adapter_id: str, folder: Path) -> dict[str, Any]:
        """Upload an adapter folder as a new version and switch to it."""
        names = ("adapter_config.json", "adapter_model.safetensors", "manifest.json")
        with contextlib.ExitStack() as open_files:
            parts = {
                name.partition(".")[0]: (name, open_files.enter_context((folder / name).open("rb")))
                for name in names
            }
            answer: dict[str, Any] = self.call(
                "POST",
                f"/admin/adapters/{adapter_id}/versions",
                files=parts,
                data={"activate": "true"},
            )
        return answer

    def create_user(self, user: str, adapter_id: str) -> str:
        """A user who owns nothing and talks to `adapter_id`; returns his API key."""
        self.call("POST", "/admin/users", json={"id": user})
        grant = {"users": [user]}
        self.call("PUT", f"/admin/adapters/{adapter_id}/grants", json=grant)
        self.call("PUT", f"/admin/users/{user}/assignment", json={"adapter": adapter_id})
        key: str = self.call("POST", f"/admin/users/{user}/keys", json={})["key"]
        return key

    def ask(self, key: str, question: str, adapter: str | None = None) -> tuple[str, str]:
        """The greedy answer and the `X-Adapter-Id` that gave it."""
        headers = {"Authorization": f"Bearer {key}"}
        if adapter:
            headers["X-Adapter-Id"] = adapter
        answer = httpx.post(
            f"{self.url}/v1/chat/completions",
            headers=headers,
            json={
                "messages": [{"role": "user", "content": question}],
                "temperature": 0,
                "max_tokens": 64,
            },
            timeout=120,
        )
        if answer.is_error:
            raise SystemExit(f"chat: {answer.status_code} {answer.text}")
        text: str = answer.json()["choices"][0]["message"]["content"]
        return text.strip(), answer.headers["X-Adapter-Id"]


def free_port(wanted: int) -> int:
    """`wanted` if nobody listens there, else one that the system picks."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise SystemExit("no port is free on 127.0.0.1")


@contextlib.contextmanager
def serving(
    work: Path,
    console: Console,
    port: int = 8000,
    settings: Mapping[str, str] | None = None,
    flags: Sequence[str] = (),
) -> Iterator[Server]:
    """Start `bapo serve` with a data folder in `work`, wait until it is ready, stop it at the end.

    `settings` are further `BAPO_*` variables, `flags` further words of the command. The server's
    output goes to `work/server.log`.
    """
    port = free_port(port)
    admin_key = f"demo-{secrets.token_urlsafe(24)}"
    environment = {**os.environ, "BAPO_ADMIN_KEY": admin_key, **(settings or {})}
    command = [sys.executable, "-m", "bapo", "serve", "--port", str(port), *flags]
    log = work / "server.log"
    with log.open("wb") as output:
        # A session of its own: Ctrl-C is for the demo, which then stops the server in order.
        process = subprocess.Popen(
            [*command, "--data-dir", str(work / "data")],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", admin_key, process.pid)
    try:
        began = time.monotonic()
        # How far vLLM is with its imports and its engine, nobody can ask: the bar has no end.
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            progress.add_task("starting vLLM", total=None)
            while not _ready(server.url):
                waited = time.monotonic() - began
                if process.poll() is not None or waited > START_SECONDS:
                    raise SystemExit(f"the server did not start; its log is {log}")
                time.sleep(0.25)
        console.print(f"server ready after {time.monotonic() - began:.1f} s at {server.url}")
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.returncode != 0:
        raise SystemExit(f"the server ended with status {process.returncode}; its log is {log}")


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready", timeout=2).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
