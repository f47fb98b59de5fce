"""The verbs, as they are typed: a table or JSON, or one sentence and exit code 1."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from adapters.accounts_cli import groups_app, keys_app, quotas_app, users_app
from adapters.base import POCKET, BaseModelInfo, describe_base
from adapters.cli import adapters_app, db_app
from adapters.experiments_cli import experiments_app
from adapters.feedback_cli import feedback_app
from adapters.registry import open_registry

Run = Callable[..., Result]


@pytest.fixture
def base() -> BaseModelInfo:
    return describe_base(POCKET)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a verb on a data folder of its own."""

    def verb(app: typer.Typer, *args: Any, here: bool = True, fails: bool = False) -> Result:
        where = ["--data-dir", str(tmp_path / "data")] if here else []
        result = CliRunner().invoke(app, [*map(str, args), *where])
        assert result.exit_code == (1 if fails else 0), result.output
        assert not fails or re.fullmatch(r"[A-Z'].*\.\n", result.stderr), result.stderr
        return result

    return verb


def test_from_a_folder_to_a_version(run: Run, craft: Callable[..., Path]) -> None:
    folder = craft(seed=1)
    checked = run(adapters_app, "check", folder, "--json", here=False)
    assert json.loads(checked.output)["rank"] == 4
    assert "rank" in run(adapters_app, "check", folder, here=False).output
    assert "none yet" in run(adapters_app, "list").output
    made = run(adapters_app, "publish", "concise", folder, "--activate", "--json")
    assert json.loads(made.output)["ref"] == "concise@1"
    run(adapters_app, "publish", "concise", craft(seed=2))
    assert run(adapters_app, "activate", "concise", 2, "--expected", 1).output == "concise@2\n"
    assert run(adapters_app, "rollback", "concise").output == "concise@1\n"
    (row,) = json.loads(run(adapters_app, "list", "--json").output)
    assert (row["adapter"], row["active_version"]) == ("concise", 1)
    assert len(json.loads(run(adapters_app, "show", "concise", "--json").output)["versions"]) == 2
    assert "sha256:" in run(adapters_app, "show", "concise").output
    assert "2 of 2" in run(adapters_app, "verify").output
    run(adapters_app, "retire", "concise")
    run(adapters_app, "show", "concise", fails=True)


def test_feedback(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "pairs.jsonl"
    run(users_app, "create", "alice")
    run(feedback_app, "agree", "alice")
    run(feedback_app, "agree", "nobody", fails=True)
    assert "nothing written" in run(feedback_app, "export", "--out", out).output
    registry = open_registry(tmp_path / "data")
    registry.feedback.prefer_text("alice", "Norway?", "Å: Oslo", "Bergen")
    registry.close()
    assert run(feedback_app, "export", "--out", out).output.startswith("1 pairs of 1 users")
    assert json.loads(out.read_text(encoding="utf-8")) == {
        "prompt": [{"role": "user", "content": "Norway?"}],
        "chosen": [{"role": "assistant", "content": "Å: Oslo"}],
        "rejected": [{"role": "assistant", "content": "Bergen"}],
        "user_id": "alice",
    }
    run(feedback_app, "export", "--out", out, fails=True)  # it is there
    run(feedback_app, "export", "--out", tmp_path / "no" / "x.jsonl", fails=True)
    for which in (["--user", "bob"], ["--adapter", "base"]):
        told = run(feedback_app, "export", *which, "--out", tmp_path / "none.jsonl")
        assert "nothing written" in told.output
    run(feedback_app, "withdraw", "alice")
    assert "nothing" in run(feedback_app, "export", "--out", tmp_path / "none.jsonl").output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "pairs.jsonl"]


def test_results_of_an_experiment(run: Run, tmp_path: Path) -> None:
    for user in ("alice", "bob"):
        run(users_app, "create", user)
    arms = ("--arm", "control=base", "--arm", "warm=base:2")
    run(experiments_app, "create", "tone", *arms)
    run(experiments_app, "enrol", "tone", "--everyone")
    run(experiments_app, "start", "tone")
    found = json.loads(run(experiments_app, "results", "tone", "--json").output)
    assert [(arm["name"], arm["rated"]) for arm in found["arms"]] == [("control", 0), ("warm", 0)]
    shown = run(experiments_app, "results", "tone").output
    assert "0 of 0" in shown
    assert "-100.0%" in shown
    run(experiments_app, "results", "other", fails=True)


def test_users_and_keys(run: Run, craft: Callable[..., Path]) -> None:
    run(adapters_app, "publish", "concise", craft(), "--activate")
    run(users_app, "create", "alice", "--adapter", "concise")
    (row,) = json.loads(run(users_app, "list", "--json").output)
    assert (row["id"], row["assigned"]) == ("alice", "concise")
    key = run(keys_app, "create", "--user", "alice").output.strip()
    run(keys_app, "revoke", key.split("_")[1])
    run(keys_app, "revoke", key.split("_")[1], fails=True)
    run(users_app, "delete", "alice")
    run(users_app, "delete", "alice", fails=True)
    assert run(keys_app, "create", "--role", "admin").output.startswith("bapo_")
    run(keys_app, "create", fails=True)
    run(db_app, "upgrade")


def test_groups_grants_quotas_and_the_log(run: Run, craft: Callable[..., Path]) -> None:
    run(adapters_app, "publish", "concise", craft(), "--activate")
    for user in ("ann", "ben"):
        run(users_app, "create", user)
    run(groups_app, "create", "staff")
    run(groups_app, "add", "staff", "ann", "ben")
    run(groups_app, "remove", "staff", "ben")
    (group,) = json.loads(run(groups_app, "list", "--json").output)
    assert (group["id"], group["members"]) == ("staff", ["ann"])
    run(adapters_app, "grant", "concise", "--group", "staff", "--user", "ben")
    shown = json.loads(run(adapters_app, "show", "concise", "--json").output)
    assert "ben" in json.dumps(shown)
    assert "staff" in json.dumps(shown)
    run(users_app, "assign", "ann", "concise")
    run(users_app, "assign", "ann", "base")
    run(groups_app, "delete", "staff")
    run(quotas_app, "set", "ann", "--versions", 0)
    (quota,) = json.loads(run(quotas_app, "list", "--json").output)
    assert (quota["owner"], quota["max_versions"]) == ("ann", 0)
    refused = run(adapters_app, "publish", "mine", craft(seed=1), "--owner", "ann", fails=True)
    assert "retire an adapter first" in refused.stderr
    run(quotas_app, "delete", "ann")
    lines = json.loads(run(adapters_app, "audit", "concise", "--json").output)
    assert [line["action"] for line in lines][-1] == "adapter.publish"
    assert "subject" in run(adapters_app, "audit", "concise").output


def test_experiments(run: Run, craft: Callable[..., Path]) -> None:
    run(adapters_app, "publish", "warm", craft(), "--activate")
    for user in ("ann", "ben"):
        run(users_app, "create", user)
    run(groups_app, "create", "staff")
    run(groups_app, "add", "staff", "ann")
    arms = ("--arm", "control=base", "--arm", "warm=warm@1:3")
    made = json.loads(run(experiments_app, "create", "tone", *arms, "--json").output)
    assert made["arms"] == [
        {"name": "control", "adapter": "base", "weight": 1},
        {"name": "warm", "adapter": "warm@1", "weight": 3},
    ]
    for wrong in ("warm", "warm=", "=warm", "warm=warm:x", "warm=warm:-1", "warm=warm@0"):
        run(experiments_app, "create", "other", *arms[:2], "--arm", wrong, fails=True)
    run(experiments_app, "enrol", "tone", "--group", "staff")
    added = json.loads(run(experiments_app, "enrol", "tone", "--everyone", "--json").output)
    assert added == {"experiment": "tone", "added": 1}
    run(experiments_app, "start", "tone")
    assert "warm=warm@1:3" in run(experiments_app, "show", "tone").output
    run(experiments_app, "arms", "tone", "--arm", "control=base", "--arm", "warm=warm@1:9")
    run(experiments_app, "stop", "tone")
    assert json.loads(run(experiments_app, "show", "tone", "--json").output)["users"] == 2
    run(experiments_app, "conclude", "tone", "--winner", "warm")
    (row,) = json.loads(run(experiments_app, "list", "--json").output)
    assert (row["state"], row["winner"]) == ("concluded", "warm")
    assert "concluded" in run(experiments_app, "list").output
    run(experiments_app, "delete", "tone")
    assert "does not exist" in run(experiments_app, "show", "tone", fails=True).stderr


def test_collecting_exporting_and_importing(
    run: Run, craft: Callable[..., Path], tmp_path: Path
) -> None:
    for name, seed in (("kept", 1), ("gone", 2)):
        run(adapters_app, "publish", name, craft(seed=seed), "--activate")
    run(adapters_app, "retire", "gone")
    young = json.loads(run(adapters_app, "gc", "--json").output)
    assert young["removed"] == 0
    planned = json.loads(run(adapters_app, "gc", "--hours", 0, "--dry-run", "--json").output)
    assert planned["removed"] == 1
    assert json.loads(run(adapters_app, "gc", "--hours", 0, "--json").output) == planned
    assert json.loads(run(adapters_app, "gc", "--hours", 0, "--json").output)["removed"] == 0
    assert "1 of 1" in run(adapters_app, "verify").output
    assert "exported" in run(adapters_app, "export", tmp_path / "moved").output
    run(adapters_app, "export", tmp_path / "moved", fails=True)
    new = ("--data-dir", tmp_path / "new")
    assert "imported" in run(adapters_app, "import", tmp_path / "moved", *new, here=False).output
    (row,) = json.loads(run(adapters_app, "list", "--json", *new, here=False).output)
    assert (row["adapter"], row["active_version"]) == ("kept", 1)
    far = ("--server", "http://127.0.0.1:9", "--key", "k")
    for verb, folder in (("export", "x"), ("import", "moved")):
        refused = run(adapters_app, verb, tmp_path / folder, *far, fails=True)
        assert "No server answers" in refused.stderr
    assert "on the registry itself" in run(db_app, "upgrade", *far, fails=True).stderr


def test_bad_adapters_are_one_sentence(run: Run, craft: Callable[..., Path]) -> None:
    broken = craft(config={"r": 0, "use_dora": True})
    for result in (
        run(adapters_app, "check", broken, here=False, fails=True),
        run(adapters_app, "publish", "concise", broken, fails=True),
    ):
        assert "use_dora=false" in result.stderr
    run(adapters_app, "check", broken.with_name("nowhere"), here=False, fails=True)
    run(adapters_app, "check", craft(), "--model", "nowhere", here=False, fails=True)
    run(adapters_app, "publish", "base", craft(), fails=True)
    run(adapters_app, "activate", "unknown", 1, fails=True)


def test_damage_is_said(run: Run, craft: Callable[..., Path], tmp_path: Path) -> None:
    run(adapters_app, "publish", "concise", craft())
    (weights,) = (tmp_path / "data").rglob("adapter_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    result = run(adapters_app, "verify", fails=True)
    assert "damaged" in result.stderr
    assert "0 of 1" in result.output


def test_a_server_that_is_not_there(run: Run, craft: Callable[..., Path]) -> None:
    server = ("--server", "http://127.0.0.1:9", "--key", "k")
    assert "No server answers" in run(adapters_app, "list", *server, fails=True).stderr
    run(adapters_app, "publish", "a", craft(), *server, fails=True)
    run(adapters_app, "publish", "a", craft().with_name("nowhere"), *server, fails=True)
    run(adapters_app, "list", "--server", "http://127.0.0.1:9", fails=True)
    for url in ("no url", "http://[", "ftp://host"):
        run(adapters_app, "list", "--server", url, "--key", "k", fails=True)
