"""A whole registry out of the running server, and into another one that is killed on the way.

The other server is asked before its engine is up: administration does not wait for it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import update
from typer.testing import CliRunner

from adapters.artifact import artifact_digest
from adapters.cli import adapters_app
from adapters.db import VersionRow, writing
from adapters.registry import open_registry
from adapters.terminal import Where
from adapters.versioned import versions_of

from served import QUESTION, Served, admin, refused
from serving import Server, free_port


@contextlib.contextmanager
def young(data: Path, log: Path) -> Iterator[tuple[Server, subprocess.Popen[bytes]]]:
    """A server that listens, and whose engine may be starting still."""
    port, key = free_port(0), f"test-{secrets.token_urlsafe(12)}"
    small = {"BAPO_ADMIN_KEY": key, "BAPO_DTYPE": "float32", "BAPO_KV_CACHE_MEBIBYTES": "64"}
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "bapo", "serve", "--port", str(port), "--data-dir", str(data)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **small},
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", key, process.pid)
    try:
        wait_for(server, "/health/live", process)
        yield server, process
    finally:
        process.kill()
        process.wait()


def wait_for(server: Server, path: str, process: subprocess.Popen[bytes]) -> None:
    while True:
        assert process.poll() is None
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(server.url + path, timeout=5).status_code == httpx.codes.OK:
                return
        time.sleep(0.1)


def verb(server: Server, *words: str, fails: bool = False) -> str:
    where = ["--server", server.url, "--key", server.admin_key]
    result = CliRunner().invoke(adapters_app, [*words, *where])
    assert result.exit_code == (1 if fails else 0), result.output
    return result.stderr if fails else result.stdout


def test_out_of_one_server_and_into_another(served: Served, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    assert "exported" in verb(served.server, "export", str(moved))
    assert "exists" in verb(served.server, "export", str(moved), fails=True)
    archive = admin(served, "GET", "/registry")
    assert archive.headers["Content-Type"] == "application/x-tar"
    half = archive.content[: len(archive.content) // 2]
    key, data, log = served.keys["pirate"], tmp_path / "data", tmp_path / "server.log"

    with young(data, log) as (server, process):
        # Killed with half of it in: the next start knows nothing of it.
        def first_half() -> Iterator[bytes]:
            yield half
            while not list((data / "store" / "drafts").glob("*/tables")):
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
            yield b"more"

        with pytest.raises(httpx.TransportError):
            httpx.post(f"{server.url}/admin/registry", headers=auth(server), content=first_half())

    with young(data, log) as (server, process):
        assert server.call("GET", "/admin/adapters")["data"] == []
        assert not list((data / "store" / "drafts").iterdir())
        cut = httpx.post(f"{server.url}/admin/registry", headers=auth(server), content=half)
        assert "broke off" in refused(cut, 422, "invalid_export")["message"]
        noise = httpx.post(f"{server.url}/admin/registry", headers=auth(server), content=b"x" * 999)
        assert "no tar archive" in refused(noise, 422, "invalid_export")["message"]
        assert server.call("GET", "/admin/audit")["data"] == []

        assert "imported" in verb(server, "import", str(moved))
        assert "not empty" in verb(server, "import", str(moved), fails=True)
        there, here = (s.call("GET", "/admin/adapters") for s in (served.server, server))
        assert here == there
        # The user's key is in force at once, and the answer is what it was.
        wait_for(server, "/health/ready", process)
        assert server.ask(key, QUESTION) == served.server.ask(key, QUESTION)
        another_base(data, "formal")
        answer = ask(server, served.keys["formal"])
        while answer.status_code == httpx.codes.OK:  # until the server has looked
            answer = ask(server, served.keys["formal"])
        assert "another base model" in refused(answer, 422, "incompatible_base")["message"]
        # What cannot be served is not listed, and says why when it is asked for by name.
        assert "formal" in models(served.server).json()["root"]
        assert models(server).status_code == httpx.codes.UNPROCESSABLE_ENTITY
        listed = [model["id"] for model in models(server, "").json()["data"]]
        assert listed == ["pocket", "pirate", "playful"]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_for_administrators_only(served: Served, method: str) -> None:
    url = f"{served.server.url}/admin/registry"
    mine = {"Authorization": f"Bearer {served.keys['pirate']}"}
    refused(httpx.request(method, url, headers=mine, content=b"x" * 2**20), 403, "not_allowed")
    refused(httpx.request(method, url), 401, "invalid_api_key")


def another_base(data: Path, adapter_id: str) -> None:
    """As if the server had been started with another model than the adapter was published for."""
    registry = open_registry(data)
    with writing(registry.engine) as session:
        other = {"base_fingerprint": "sha256:" + "0" * 64}
        session.execute(update(VersionRow).where(VersionRow.adapter_id == adapter_id).values(other))
    registry.set_grants(adapter_id, everyone=True, users=[])  # so that the server looks
    registry.close()


def models(server: Server, name: str = "/formal") -> httpx.Response:
    return httpx.get(f"{server.url}/v1/models{name}", headers=auth(server), timeout=60)


def ask(server: Server, key: str) -> httpx.Response:
    return httpx.post(
        f"{server.url}/v1/chat/completions",
        headers={"Authorization": f"Bearer {key}"},
        json={"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 4},
        timeout=60,
    )


def auth(server: Server) -> dict[str, str]:
    return {"Authorization": f"Bearer {server.admin_key}"}


def test_one_adapters_versions_are_fetched_without_the_rest(served: Served, tmp_path: Path) -> None:
    where = Where(server=served.server.url, key=served.server.admin_key)
    listed = admin(served, "GET", "/adapters/pirate").json()["versions"]
    with versions_of(where, "pirate") as found:
        assert [one.name for one in found] == [f"pirate@{row['version']}" for row in listed]
        for one, row in zip(found, listed, strict=True):
            assert artifact_digest(one.folder) == row["digest"]
            assert one.manifest is not None
            assert one.manifest.name == row["manifest"]["name"]
        gone = found[0].folder
    assert not gone.exists()
    path = "/adapters/pirate/versions/1/files"
    assert admin(served, "GET", path).headers["Content-Type"] == "application/x-tar"
    refused(admin(served, "GET", path.replace("1", "99")), 404, "model_not_found")
    stranger = {"Authorization": f"Bearer {served.keys['pirate']}"}
    denied = httpx.get(f"{served.server.url}/admin{path}", headers=stranger)
    assert denied.status_code == httpx.codes.FORBIDDEN
