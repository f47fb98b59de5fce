"""The command line on a running server says what it says on the registry itself."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import typer
from typer.testing import CliRunner

from adapters.accounts_cli import groups_app, keys_app, quotas_app, users_app
from adapters.artifact import artifact_digest
from adapters.cli import adapters_app
from adapters.terminal import Where
from adapters.versioned import versions_of

from served import Served


def run(served: Served, app: typer.Typer, *words: Any, fails: bool = False) -> str:
    where = ["--server", served.server.url, "--key", served.server.admin_key]
    result = CliRunner().invoke(app, [*map(str, words), *where])
    assert result.exit_code == (1 if fails else 0), result.output
    return result.stderr if fails else result.stdout


def test_adapters(served: Served) -> None:
    made = run(served, adapters_app, "publish", "far", served.folders["pirate"], "--json")
    assert json.loads(made)["ref"] == "far@1"
    run(served, adapters_app, "publish", "far", served.folders["formal"], "--activate")
    assert run(served, adapters_app, "activate", "far", 1, "--expected", 2) == "far@1\n"
    assert "look again" in run(
        served, adapters_app, "activate", "far", 2, "--expected", 2, fails=True
    )
    assert run(served, adapters_app, "rollback", "far") == "far@2\n"
    lines = json.loads(run(served, adapters_app, "audit", "far", "--json"))
    assert [line["action"] for line in lines][:2] == ["adapter.rollback", "adapter.activate"]
    shown = json.loads(run(served, adapters_app, "show", "far", "--json"))
    assert (shown["active_version"], len(shown["versions"])) == (2, 2)
    found = json.loads(run(served, adapters_app, "verify", "--json"))
    assert (found["stored"] >= 3, found["damaged"]) == (True, {})
    run(served, adapters_app, "retire", "far")
    assert json.loads(run(served, adapters_app, "gc", "--dry-run", "--json"))["removed"] == 0
    names = [row["adapter"] for row in json.loads(run(served, adapters_app, "list", "--json"))]
    assert "far" not in names
    assert "pirate" in names


def test_files_of_versions(served: Served) -> None:
    run(served, adapters_app, "publish", "versioned", served.folders["pirate"])
    run(served, adapters_app, "publish", "versioned", served.folders["formal"])
    shown = json.loads(run(served, adapters_app, "show", "versioned", "--json"))["versions"]
    there = Where(server=served.server.url, key=served.server.admin_key)
    here = Where(data_dir=served.data_dir)
    for where in (there, here):
        with versions_of(where, "versioned") as found:
            assert [v.name for v in found] == ["versioned@1", "versioned@2"]
            assert [artifact_digest(v.folder) for v in found] == [v["digest"] for v in shown]
            assert all(v.manifest is not None for v in found)
    run(served, adapters_app, "retire", "versioned")


def test_accounts(served: Served) -> None:
    run(served, users_app, "create", "far-away", "--adapter", "pirate")
    key = run(served, keys_app, "create", "--user", "far-away").strip()
    run(served, groups_app, "create", "far-group")
    run(served, groups_app, "add", "far-group", "far-away")
    run(served, adapters_app, "grant", "formal", "--group", "far-group", "--user", "likes-formal")
    groups = json.loads(run(served, groups_app, "list", "--json"))
    assert [g["members"] for g in groups if g["id"] == "far-group"] == [["far-away"]]
    _, label = served.server.ask(key, "What is the capital of Norway?", adapter="formal")
    assert label == "formal@1"
    run(served, quotas_app, "set", "far-away", "--versions", 1, "--mebibytes", 0.5)
    quotas = json.loads(run(served, quotas_app, "list", "--json"))
    mine = {"owner": "far-away", "max_versions": 1, "max_bytes": 2**19}
    assert [quota for quota in quotas if quota["owner"] == "far-away"] == [mine]
    run(served, quotas_app, "delete", "far-away")
    run(served, keys_app, "revoke", key.split("_")[1])
    assert "does not exist" in run(served, keys_app, "revoke", key.split("_")[1], fails=True)


def test_a_key_for_a_moment(served: Served) -> None:
    call = served.server.call
    call("POST", "/admin/users", json={"id": "passing-by"})
    lasting = run(served, keys_app, "create", "--user", "passing-by", "--days", "1").strip()
    made = call("POST", "/admin/users/passing-by/keys", json={"days": 1 / 86400})
    assert made["expires"]

    def status(key: str) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.get(f"{served.server.url}/v1/models", headers=headers).status_code

    deadline = time.monotonic() + 5
    while status(made["key"]) == 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert status(made["key"]) == 401
    assert status(lasting) == 200
    refused = httpx.post(
        f"{served.server.url}/admin/users/passing-by/keys",
        headers={"Authorization": f"Bearer {served.server.admin_key}"},
        json={"days": -1},
    )
    assert refused.status_code == 400
    run(served, groups_app, "delete", "far-group")
    run(served, users_app, "delete", "far-away")
