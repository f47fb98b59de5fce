"""The admin API against the running server: uploads, hot swaps, pointers, grants, and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from served import FILES, Served, admin, chat, refused, upload


def test_hot_swap_in_a_running_server(served: Served) -> None:
    """Version 2 replaces version 1 by a pointer; both can be asked for; roll back brings 1 back."""
    name = "swap/voice"
    first = upload(served, name, served.folders["pirate"], activate="true")
    assert first.status_code == 201, first.text
    user = "swapper"
    key = served.server.create_user(user, name)
    said_first = chat(served, key)
    second = upload(served, name, served.folders["formal"])
    assert second.json()["ref"] == f"{name}@2"
    assert chat(served, key).headers["X-Adapter-Id"] == f"{name}@1"

    moved = admin(
        served, "POST", f"/adapters/{name}/activate", json={"version": 2, "expected_version": 1}
    )
    assert moved.status_code == 200, moved.text
    said_second = chat(served, key)
    assert said_second.headers["X-Adapter-Id"] == f"{name}@2"
    texts = [a.json()["choices"][0]["message"]["content"] for a in (said_first, said_second)]
    assert texts[0] != texts[1]

    lost = admin(
        served, "POST", f"/adapters/{name}/activate", json={"version": 1, "expected_version": 1}
    )
    refused(lost, 409, "version_conflict")
    assert admin(served, "POST", f"/adapters/{name}/rollback").json()["version"] == 1
    assert chat(served, key).headers["X-Adapter-Id"] == f"{name}@1"
    pinned = chat(served, key, headers={"X-Adapter-Id": f"{name}@2"})
    assert pinned.json()["choices"][0]["message"]["content"] == texts[1]

    assert admin(served, "DELETE", f"/adapters/{name}").status_code == 204
    refused(chat(served, key, model=name), 404, "model_not_found")
    refused(chat(served, key), 404, "model_not_found")  # assigned, retired: never the base


def test_equal_uploads_are_stored_once(served: Served) -> None:
    digests = {
        upload(served, f"copy-{i}", served.folders["formal"]).json()["digest"] for i in range(2)
    }
    assert len(digests) == 1


def test_an_idempotency_key_makes_one_version(served: Served) -> None:
    def send() -> httpx.Response:
        parts = {p: (n, (served.folders["formal"] / n).read_bytes()) for p, n in FILES.items()}
        return httpx.post(
            f"{served.server.url}/admin/adapters/once/versions",
            headers={
                "Authorization": f"Bearer {served.server.admin_key}",
                "Idempotency-Key": "first-try",
            },
            files=parts,
            timeout=60,
        )

    assert [send().json()["version"] for _ in range(2)] == [1, 1]


def test_only_admins(served: Served) -> None:
    key = served.keys["formal"]
    refused(upload(served, "mine", served.folders["formal"], key=key), 403, "not_allowed")
    mine = {"Authorization": f"Bearer {key}"}
    refused(httpx.get(f"{served.server.url}/admin/users", headers=mine), 403, "not_allowed")


@pytest.mark.parametrize("name", ["base", "text", "pocket", "UPPER", "a//b", "a/b/c", "x" * 80])
def test_names_that_cannot_be(served: Served, name: str) -> None:
    refused(upload(served, name, served.folders["formal"]), 400, "invalid_name")


def test_an_adapter_for_another_base(served: Served, tmp_path: Path) -> None:
    folder = shutil.copytree(served.folders["formal"], tmp_path / "other")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["base"]["fingerprint"] = "sha256:" + "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    error = refused(upload(served, "other", folder), 422, "incompatible_base")
    assert "base" in error["message"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"r": 4}, "r"),
        ({"use_dora": True}, "dora"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"r": "8"}, "r"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ],
)
def test_configs_that_vllm_would_serve_wrong(
    served: Served, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    folder = shutil.copytree(served.folders["formal"], tmp_path / "bad")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    error = refused(upload(served, "bad", folder), 422, "invalid_adapter")
    assert says in str(error["message"]).lower()


def test_a_truncated_upload_leaves_nothing(served: Served, tmp_path: Path) -> None:
    folder = shutil.copytree(served.folders["formal"], tmp_path / "cut")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(upload(served, "cut", folder), 422, "invalid_adapter")
    refused(admin(served, "GET", "/adapters/cut"), 404, "model_not_found")


def test_a_file_that_nobody_asked_for(served: Served) -> None:
    folder = served.folders["formal"]
    parts = {p: (n, (folder / n).read_bytes()) for p, n in FILES.items()}
    parts["manifest"] = ("tokenizer.json", b"{}")
    answer = httpx.post(
        f"{served.server.url}/admin/adapters/odd/versions",
        headers={"Authorization": f"Bearer {served.server.admin_key}"},
        files=parts,
        timeout=60,
    )
    error = refused(answer, 400, "invalid_request")
    assert "tokenizer.json" in error["message"]


def test_users_and_keys(served: Served) -> None:
    created = admin(served, "POST", "/users", json={"id": "dora"})
    assert created.status_code == 201
    refused(admin(served, "POST", "/users", json={"id": "dora"}), 409, "already_exists")
    key = admin(served, "POST", "/users/dora/keys", json={}).json()["key"]
    assert chat(served, key).headers["X-Adapter-Id"] == "base"  # nothing assigned
    wish = {"adapter": "nothing-there"}
    refused(admin(served, "PUT", "/users/dora/assignment", json=wish), 404, "model_not_found")
    assert admin(served, "DELETE", "/users/dora").status_code == 204
    refused(chat(served, key), 401, "invalid_api_key")
    refused(admin(served, "POST", "/users/ghost/keys", json={}), 404, "user_not_found")
