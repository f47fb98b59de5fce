"""Evaluation over HTTP: the running server as the judge, and as the model tasks are asked of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adapters.base import POCKET
from training.evaluation.cli import evaluate
from training.evaluation.results import read_report

from served import Served
from tasks_on_disk import write_tasks

ROOT = Path(__file__).resolve().parents[2]
HELD_OUT = ROOT / "examples" / "preferences" / "pirate.heldout.jsonl"


def test_a_server_of_ours_judges_what_an_adapter_says(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So small a judge has no taste: what it says is kept, and what cannot be read is counted."""
    monkeypatch.setenv("BAPO_JUDGE_KEY", served.keys["pirate"])
    command = ["--model", str(POCKET), "--adapter", str(served.folders["formal"])]
    command += ["--pairs", str(HELD_OUT), "--limit", "6", "--judge", f"{served.server.url}/v1"]
    command += ["--judge-model", "base", "--report", str(tmp_path / "report")]
    for forced in ([], ["--judge-json"]):
        made = CliRunner().invoke(evaluate, [*command, *forced])
        assert made.exit_code == 0, made.output
        report = read_report(tmp_path / "report")
        duels = [duel for item in report.items.duels for duel in item.duels]
        assert len(duels) == 6
        assert all(len(duel.said) == 2 and "status" not in duel.said[0] for duel in duels)
        if forced:
            assert "preference.winrate" in report.model("formal").figures
            assert all(json.loads(said)["verdict"] in "ABC" for d in duels for said in d.said)
        else:
            unreadable = report.model("formal").figures["preference.unreadable"]
            assert unreadable.value == sum(d.outcome == "unreadable" for d in duels) / 6
    refused = CliRunner().invoke(
        evaluate, [*command[:-4], "--judge-model", "base"], env={"BAPO_JUDGE_KEY": "wrong"}
    )
    assert refused.exit_code == 1
    assert "does not answer: status 401" in refused.output


def test_tasks_on_the_server_have_the_figures_of_the_model_in_memory(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [json.loads(line) for line in HELD_OUT.read_text().splitlines()[:8]]
    questions = [
        {"question": p["prompt"], "choices": [p["rejected"], p["chosen"]], "answer": n % 2}
        for n, p in enumerate(pairs)
    ]
    folder = write_tasks(tmp_path / "tasks", questions)
    monkeypatch.setenv("BAPO_KEY", served.server.admin_key)
    command = ["--model", str(POCKET), "--tasks", "likings", "--include-path", str(folder)]
    command += ["--chat-template", "--report"]
    on_server = ["--on-server", "--server", served.server.url, "--adapter", "pirate"]
    made = CliRunner().invoke(evaluate, [*command, str(tmp_path / "a"), *on_server])
    assert made.exit_code == 0, made.output
    in_memory = ["--adapter", str(served.folders["pirate"])]
    made = CliRunner().invoke(evaluate, [*command, str(tmp_path / "b"), *in_memory])
    assert made.exit_code == 0, made.output
    there, here = read_report(tmp_path / "a"), read_report(tmp_path / "b")
    version = there.names[1]
    assert version.startswith("pirate@")
    for ours, theirs in zip(here.items.tasks, there.items.tasks, strict=True):
        assert ours.metrics["base"] == theirs.metrics["base"]
        assert ours.metrics["pirate"] == theirs.metrics[version]
    base, pirate = ([item.metrics[m]["acc"] for item in here.items.tasks] for m in here.names)
    assert base != pirate
    assert there.compared(version)["tasks.likings.acc"].n == 8
    other = shutil.copytree(POCKET, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rope_theta": 1.0}))
    strange = ["--model", str(other), *command[2:], str(tmp_path / "c"), *on_server]
    told = CliRunner().invoke(evaluate, strange)
    assert told.exit_code == 1
    assert "give the model that the server serves" in told.stderr
    on_server[-1] = "x"
    unknown = CliRunner().invoke(evaluate, [*command, str(tmp_path / "c"), *on_server])
    assert unknown.exit_code == 1
    assert "refuses x" in unknown.output
    assert not (tmp_path / "c").exists()
