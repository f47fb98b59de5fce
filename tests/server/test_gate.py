"""BAPO_REQUIRE_GATE over HTTP: what passed, what did not, what was forged, and the exception.

Only the admin API is asked, which answers while the engine still starts.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from typer.testing import CliRunner

from adapters.artifact import artifact_digest, read_manifest, write_manifest
from adapters.base import POCKET
from adapters.errors import AdapterError
from adapters.gate import sign
from adapters.normalise import normalise
from adapters.remote import RemoteRegistry
from adapters.verdict import Verdict, VerdictLine
from training.data import load_pairs, save_pairs
from training.fleet_cli import fleet

from served import FILES
from serving import free_port

KEY = Ed25519PrivateKey.generate()
PREFERENCES = Path(__file__).resolve().parents[2] / "examples" / "preferences"


@pytest.fixture(scope="module")
def admin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server that requires the gate, spoken to with its admin key."""
    work, port, key = tmp_path_factory.mktemp("gated"), free_port(0), secrets.token_urlsafe()
    environment = {
        "BAPO_ADMIN_KEY": key,
        "BAPO_REQUIRE_GATE": "1",
        "BAPO_GATE_KEYS": KEY.public_key().public_bytes_raw().hex(),
    }
    command = [sys.executable, "-m", "bapo", "serve", "--port", str(port)]
    with (work / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--data-dir", str(work / "data")],
            env={**os.environ, **environment},
            stdout=log,
            stderr=log,
        )
    try:
        client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {key}"}
        )
        with client:
            _wait_until_live(client, process)
            yield client
    finally:
        process.kill()
        process.wait()


def _wait_until_live(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        try:
            client.get("/health/live").raise_for_status()
            return
        except httpx.TransportError:
            assert process.poll() is None
            time.sleep(0.1)
    raise AssertionError("the server did not come up")


def judged(folder: Path, work: Path, *, passed: bool = True, **changes: Any) -> Path:
    """A copy of the adapter whose manifest has a signed verdict, with `changes` after signing."""
    manifest = read_manifest(folder)
    assert manifest is not None
    normalise(folder, work / "served")
    verdict = Verdict(
        digest=artifact_digest(work / "served"),
        base_fingerprint=manifest.base.fingerprint,
        gate="sha256:" + "0" * 64,
        passed=passed,
        lines=[VerdictLine(threshold="drift.kl <= 0.1", measured="0.3", passed=passed)],
    )
    said = sign(verdict, KEY).model_copy(update=changes)
    shutil.copytree(folder, work / "judged")
    write_manifest(work / "judged", manifest.model_copy(update={"verdict": said}))
    return work / "judged"


def publish(admin: httpx.Client, name: str, folder: Path, **form: str) -> httpx.Response:
    parts = {part: (file, (folder / file).read_bytes()) for part, file in FILES.items()}
    return admin.post(f"/admin/adapters/{name}/versions", files=parts, data=form)


def refused(answer: httpx.Response, says: str) -> None:
    assert answer.status_code == 409, answer.text
    assert answer.json()["error"]["code"] == "gate_refused"
    assert says in answer.json()["error"]["message"]


def test_what_passed_goes_live(
    admin: httpx.Client, folders: dict[str, Path], tmp_path: Path
) -> None:
    answer = publish(admin, "good", judged(folders["pirate"], tmp_path), activate="true")
    assert answer.status_code == 201, answer.text
    assert admin.get("/admin/adapters/good").json()["active_version"] == 1


def test_what_failed_or_was_forged_or_never_asked_does_not(
    admin: httpx.Client, folders: dict[str, Path], tmp_path: Path
) -> None:
    for place, says, options in (
        ("failed", "it failed: drift.kl <= 0.1 (0.3)", {"passed": False}),
        ("forged", "changed after it was signed", {"passed": False, "signature": "0" * 128}),
    ):
        (tmp_path / place).mkdir()
        folder = judged(folders["pirate"], tmp_path / place, **options)
        refused(publish(admin, place, folder, activate="true"), says)
        assert admin.get(f"/admin/adapters/{place}").status_code == 404
    assert publish(admin, "unasked", folders["pirate"]).status_code == 201
    refused(admin.post("/admin/adapters/unasked/activate", json={"version": 1}), "has no verdict")


def test_a_verdict_of_another_adapter_counts_for_nothing(
    admin: httpx.Client, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = judged(folders["pirate"], tmp_path)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(folders["formal"] / name, folder / name)
    refused(publish(admin, "swapped", folder, activate="true"), "about another adapter")


def test_force_is_for_admins_and_in_the_audit_log(
    admin: httpx.Client, folders: dict[str, Path]
) -> None:
    publish(admin, "forced", folders["formal"])
    path, wish = "/admin/adapters/forced/activate", {"version": 1, "force": True}
    admin.post("/admin/users", json={"id": "eve"})
    key = admin.post("/admin/users/eve/keys", json={}).json()["key"]
    answer = admin.post(path, json=wish, headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 403
    assert admin.post(path, json=wish).status_code == 200
    line = admin.get("/admin/audit", params={"subject": "forced", "limit": 1}).json()["data"][0]
    assert line["action"] == "adapter.activate"
    assert line["details"]["forced"] is True
    assert "no verdict" in line["details"]["gate"]


def test_an_experiment_gives_nobody_a_version_that_did_not_pass(
    admin: httpx.Client, folders: dict[str, Path]
) -> None:
    publish(admin, "tried", folders["formal"])
    arms = [{"name": "control", "adapter": "base"}, {"name": "warm", "adapter": "tried@1"}]
    assert admin.post("/admin/experiments", json={"id": "tone", "arms": arms}).status_code == 201
    start = "/admin/experiments/tone/start"
    refused(admin.post(start), "'tried@1'")
    refused(admin.post(start, json={"force": False}), "has no verdict")
    remote = RemoteRegistry(str(admin.base_url), admin.headers["Authorization"].split()[1])
    with pytest.raises(AdapterError, match="has no verdict"):
        remote.start_experiment("tone")
    assert remote.start_experiment("tone", force=True)["state"] == "running"
    line = admin.get("/admin/audit", params={"subject": "tone", "limit": 1}).json()["data"][0]
    assert line["action"] == "experiment.start"
    assert line["details"] == {"forced": True, "gate": {"warm": "this version has no verdict"}}


def test_a_fleet_activates_what_its_gate_lets_pass(admin: httpx.Client, tmp_path: Path) -> None:
    pairs, users = load_pairs(PREFERENCES / "pirate.jsonl")[:8], tmp_path / "users"
    held_out = load_pairs(PREFERENCES / "pirate.heldout.jsonl")[:8]
    for folder, said in ((users, pairs), (tmp_path / "held-out", held_out)):
        folder.mkdir()
        save_pairs(said, folder / "gated.jsonl")
    pem = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "key.pem").write_bytes(pem)
    words = ["--model", str(POCKET), "--data", str(users), "--out", str(tmp_path / "out")]
    words += ["--server", str(admin.base_url), "--key", admin.headers["Authorization"].split()[1]]
    words += ["--anchor-cache", str(tmp_path / "answers.jsonl"), "--use-cpu", "true"]
    words += [
        "--bf16",
        "false",
        "--workers",
        "1",
        "--json",
        "--gate-key",
        str(tmp_path / "key.pem"),
    ]
    words += ["--held-out", str(tmp_path / "held-out"), "--gate", str(tmp_path / "gate.yaml")]
    for bound, version, active in ((2, 1, None), (0, 2, 2)):
        (tmp_path / "gate.yaml").write_text(f"preference.accuracy: {{at_least: {bound}}}")
        told = CliRunner().invoke(fleet, words)
        assert told.exit_code == (active is None), told.output
        outcome = json.loads(told.stdout)
        assert (outcome["version"], len(outcome["gate"])) == (version, active is None)
        assert admin.get("/admin/adapters/gated").json()["active_version"] == active
