"""A fleet publishes to a running server: everyone's adapter answers, and once only."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from adapters.base import POCKET
from training.data import load_pairs, save_pairs
from training.fleet_cli import fleet

from served import Served, admin, chat

PIRATE = Path(__file__).resolve().parents[2] / "examples" / "preferences" / "pirate.jsonl"


def test_a_fleet_publishes_what_then_answers(served: Served, tmp_path: Path) -> None:
    pairs = load_pairs(PIRATE)
    users = tmp_path / "users"
    users.mkdir()
    for number, user in enumerate(("fleet-ann", "fleet-ben")):
        save_pairs(pairs[8 * number : 8 * number + 8], users / f"{user}.jsonl")
    words = ["--model", str(POCKET), "--data", str(users), "--out", str(tmp_path / "out")]
    words += ["--server", served.server.url, "--key", served.server.admin_key, "--json"]
    words += ["--anchor-cache", str(tmp_path / "answers.jsonl"), "--learning-rate", "1e-3"]
    words += ["--use-cpu", "true", "--bf16", "false", "--workers", "1"]
    for status in ("trained", "kept"):
        told = CliRunner().invoke(fleet, words)
        assert told.exit_code == 0, told.stderr
        outcomes = [json.loads(line) for line in told.stdout.splitlines()]
        assert [(o["user"], o["status"], o["version"]) for o in outcomes] == [
            ("fleet-ann", status, 1),
            ("fleet-ben", status, 1),
        ]
    assert admin(served, "GET", "/adapters/fleet-ann").json()["active_version"] == 1
    answer = chat(served, served.server.admin_key, headers={"X-Adapter-Id": "fleet-ben"})
    assert answer.headers["X-Adapter-Id"] == "fleet-ben@1", answer.text
