"""The fleet: every user gets his own adapter, nobody another's, and nothing is done twice."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adapters.artifact import ADAPTER_FILES
from adapters.gate import gate_of_environment, public_key, signing_key
from adapters.registry import open_registry
from training.config import BAPOConfig
from training.data import PreferencePair, save_pairs
from training.fleet import Outcome, train_fleet
from training.fleet_cli import fleet
from training.model import ResidentBase
from training.run import train_adapter
from training.users import users_of

from processes import interruptible, members

Quick = Callable[..., BAPOConfig]
WEIGHTS = ADAPTER_FILES[1]


def pairs_of(number: int) -> list[PreferencePair]:
    subjects = ["rain", "tea", "foxes"]
    return [PreferencePair(f"What is {s}?", f"Ha! {number} {s}!", f"It is {s}.") for s in subjects]


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Four users, one of whom has a broken line and one a pair that is too long."""
    folder = tmp_path / "people"
    folder.mkdir()
    for number, name in enumerate(["ann", "ben", "eve"]):
        save_pairs(pairs_of(number), folder / f"{name}.jsonl")
    (folder / "cat.jsonl").write_text('{"prompt": "x", "chosen": "y"\n')
    save_pairs([PreferencePair("Why? " * 60, "Because.", "No.")], folder / "dan.jsonl")
    return folder


def run(base: ResidentBase, people: Path, out: Path, config: BAPOConfig) -> dict[str, Outcome]:
    return {o.user: o for o in train_fleet(base, users_of(people), out, config)}


def test_everyone_gets_the_adapter_that_he_would_get_alone(
    base: ResidentBase, people: Path, tmp_path: Path, quick: Quick
) -> None:
    config = quick()
    found = run(base, people, tmp_path / "out", config)
    assert {user: outcome.status for user, outcome in found.items()} == {
        "ann": "trained",
        "ben": "trained",
        "cat": "failed",
        "dan": "failed",
        "eve": "trained",
    }
    assert "cat.jsonl:1: not JSON" in str(found["cat"].problem)
    assert "the model reads 256" in str(found["dan"].problem)
    for number, name in enumerate(["ann", "ben", "eve"]):
        alone = train_adapter(base, pairs_of(number), tmp_path / "alone" / name, config)
        made = (tmp_path / "out" / name / WEIGHTS).read_bytes()
        assert made == (alone.out / WEIGHTS).read_bytes()
    # The three share their prompts, and so their base answers.
    assert len((tmp_path / "base-answers.jsonl").read_text().splitlines()) <= 4
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "ann",
        "ben",
        "eve",
        "fleet.jsonl",
    ]


def test_again_only_what_is_new_is_trained(
    base: ResidentBase, people: Path, tmp_path: Path, quick: Quick
) -> None:
    config = quick()
    run(base, people, tmp_path / "out", config)
    before = (tmp_path / "out" / "ann" / WEIGHTS).stat().st_mtime_ns
    save_pairs(pairs_of(7), people / "ben.jsonl")
    save_pairs(pairs_of(8), people / "cat.jsonl")
    again = run(base, people, tmp_path / "out", config)
    assert [again[u].status for u in ("ann", "ben", "cat", "eve")] == [
        "kept",
        "trained",
        "trained",
        "kept",
    ]
    assert (tmp_path / "out" / "ann" / WEIGHTS).stat().st_mtime_ns == before
    other = run(base, people, tmp_path / "out", quick(beta=0.2))
    assert other["ann"].status == "trained"


def test_shards_part_the_users_and_miss_nobody(
    base: ResidentBase, people: Path, tmp_path: Path, quick: Quick
) -> None:
    seen = [
        outcome.user
        for part in range(3)
        for outcome in train_fleet(
            base, users_of(people), tmp_path / "out", quick(), shard=(part, 3)
        )
    ]
    assert sorted(seen) == ["ann", "ben", "cat", "dan", "eve"]


def test_a_users_folder_that_is_not_the_fleets_is_left_alone(
    base: ResidentBase, people: Path, tmp_path: Path, quick: Quick
) -> None:
    (tmp_path / "out" / "ann").mkdir(parents=True)
    (tmp_path / "out" / "ann" / "mine.txt").write_text("dear to me")
    found = run(base, people, tmp_path / "out", quick())
    assert "is not empty" in str(found["ann"].problem)
    assert (tmp_path / "out" / "ann" / "mine.txt").exists()


def arguments(base: Path, people: Path, work: Path, workers: int = 1) -> list[str]:
    settings = {
        "model": base,
        "data": people,
        "out": work / "out",
        "registry": work / "data",
        "anchor-cache": work / "answers.jsonl",
        "anchor-max-new-tokens": 12,
        "learning-rate": 5e-3,
        "num-train-epochs": 2,
        "bf16": "false",
        "use-cpu": "true",
        "workers": workers,
    }
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def test_the_verb_publishes_and_says_who_failed(
    base_folder: Path, people: Path, tmp_path: Path
) -> None:
    told = CliRunner().invoke(fleet, arguments(base_folder, people, tmp_path))
    assert told.exit_code == 1
    assert "3 trained" in told.stdout
    assert "0 were finished before, 2 failed" in told.stdout
    assert "not JSON" in told.stdout
    again = CliRunner().invoke(fleet, [*arguments(base_folder, people, tmp_path), "--json"])
    outcomes = [json.loads(line) for line in again.stdout.splitlines()]
    assert [(o["user"], o["status"], o["version"]) for o in outcomes if o["version"]] == [
        ("ann", "kept", 1),
        ("ben", "kept", 1),
        ("eve", "kept", 1),
    ]
    registry = open_registry(tmp_path / "data")
    assert [row["active_version"] for row in registry.list_adapters()] == [1, 1, 1]
    registry.close()


def gated(base_folder: Path, people: Path, work: Path, workers: int) -> list[str]:
    words = arguments(base_folder, people, work, workers)
    words += ["--held-out", str(work / "held-out"), "--gate", str(work / "gate.yaml")]
    return [*words, "--facts", str(work / "facts.jsonl"), "--gate-key", str(work / "key.pem")]


def test_a_gate_decides_who_is_active(
    base_folder: Path, people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ben dislikes what he was trained on, Eve was asked nothing, and two cannot be trained."""
    held_out = tmp_path / "held-out"
    held_out.mkdir()
    save_pairs(pairs_of(0), held_out / "ann.jsonl")
    turned = [PreferencePair(p.prompt, p.rejected, p.chosen) for p in pairs_of(1)]
    save_pairs(turned, held_out / "ben.jsonl")
    save_pairs(turned, held_out / "nobody.jsonl")
    (tmp_path / "facts.jsonl").write_text('{"prompt": "What is rain?", "answers": ["water"]}\n')
    (tmp_path / "gate.yaml").write_text(
        "preference.accuracy: {at_least: 0.6}\nretention.drop: {at_most: 0}\n"
        "drift.kl: {at_most: 1000}\n"
    )
    monkeypatch.setenv("BAPO_REQUIRE_GATE", "1")
    monkeypatch.setenv("BAPO_GATE_KEYS", public_key(signing_key(tmp_path / "key.pem")))
    lost = {"ann": [], "ben": ["preference.accuracy >= 0.6 (0 "], "eve": ["preference.", "drift."]}
    for workers, status in ((2, "trained"), (1, "kept")):
        words = [*gated(base_folder, people, tmp_path, workers), "--json"]
        told = CliRunner().invoke(fleet, words)
        assert told.exit_code == 1, told.output
        found = {o["user"]: o for o in map(json.loads, told.stdout.splitlines())}
        for user, lines in lost.items():
            assert (found[user]["status"], found[user]["version"]) == (status, 1)
            assert len(found[user]["gate"]) == len(lines)
            assert all(map(str.startswith, found[user]["gate"], lines))
        assert {found[user]["gate"] for user in ("cat", "dan")} == {None}
    told = CliRunner().invoke(fleet, gated(base_folder, people, tmp_path, 1))
    assert "2 did not pass the gate" in told.stdout
    assert "The gate passed 1 of 3." in told.stdout

    gate = gate_of_environment()
    registry = open_registry(tmp_path / "data", gate=gate)
    active = {row["adapter"]: row["active_version"] for row in registry.list_adapters()}
    assert active == {"ann": 1, "ben": None, "eve": None}
    registry.close()

    (tmp_path / "gate.yaml").write_text("preference.accuracy: {at_least: 0}\n")
    words = [*gated(base_folder, people, tmp_path, 1), "--json"]
    found = {
        o["user"]: o for o in map(json.loads, CliRunner().invoke(fleet, words).stdout.splitlines())
    }
    assert (found["ben"]["version"], found["ben"]["gate"]) == (2, [])  # judged anew, and active
    registry = open_registry(tmp_path / "data", gate=gate)
    active = {row["adapter"]: row["active_version"] for row in registry.list_adapters()}
    assert active == {"ann": 2, "ben": 2, "eve": None}
    registry.close()


@pytest.mark.parametrize(
    ("line", "given", "says"),
    [
        ("preference.accuracy: {at_least: 0}", [], "give --held-out"),
        ("retention.drop: {at_most: 0}", ["--held-out", "people"], "give --facts"),
        ("drift.general.kl: {at_most: 0}", ["--held-out", "people"], "does not measure this"),
        ("retention.perplexity.rise: {at_most: 0}", [], "does not measure this"),
    ],
)
def test_a_gate_that_nobody_could_pass_is_one_sentence(
    base_folder: Path, people: Path, tmp_path: Path, line: str, given: list[str], says: str
) -> None:
    (tmp_path / "gate.yaml").write_text(line)
    words = [*arguments(base_folder, people, tmp_path), "--gate-key", str(tmp_path / "key.pem")]
    told = CliRunner().invoke(fleet, [*words, "--gate", str(tmp_path / "gate.yaml"), *given])
    assert told.exit_code == 1
    assert says in told.stderr
    assert not (tmp_path / "out").exists()
    lonely = CliRunner().invoke(fleet, words)
    assert "give --gate" in lonely.stderr


@pytest.mark.parametrize("wrong", ["0/2", "3/2", "x", "1"])
def test_a_wrong_shard_is_one_sentence(base_folder: Path, people: Path, wrong: str) -> None:
    line = ["--model", str(base_folder), "--data", str(people), "--out", "x", "--shard", wrong]
    told = CliRunner().invoke(fleet, line)
    assert told.exit_code == 1
    assert "--shard must be like 2/4" in told.stderr


def start(words: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from training.fleet_cli import fleet; fleet()", *words]
    return subprocess.Popen(
        command,
        env=os.environ,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=interruptible,
    )


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_an_ended_fleet_goes_on_without_repeating_anyone(
    base_folder: Path, people: Path, tmp_path: Path, how: signal.Signals, workers: int
) -> None:
    for number in range(20):
        save_pairs(pairs_of(number), people / f"user-{number}.jsonl")
    words = arguments(base_folder, people, tmp_path, workers)
    journal = tmp_path / "out" / "fleet.jsonl"
    with start(words) as running:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and running.poll() is None:
            if journal.exists() and len(journal.read_text().splitlines()) >= 4:
                break
            time.sleep(0.02)
        running.send_signal(how)
        _, stderr = running.communicate(timeout=60)
    if how != signal.SIGKILL:
        assert running.returncode == 130
        assert "Traceback" not in stderr
    deadline = time.monotonic() + 30
    while members(running.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not members(running.pid)

    finished = {
        folder.name: (folder / WEIGHTS).stat().st_mtime_ns
        for folder in (tmp_path / "out").iterdir()
        if (folder / WEIGHTS).exists() and not folder.name.startswith(".")
    }
    assert 2 <= len(finished) < 23
    told = CliRunner().invoke(fleet, [*words, "--json"])
    outcomes = [json.loads(line) for line in told.stdout.splitlines()]
    assert len(outcomes) == 25
    others = {o["user"]: (o["status"], o["problem"]) for o in outcomes if o["status"] != "kept"}
    assert {user: told for user, told in others.items() if user in finished} == {}
    assert len(others) == 25 - len(finished)
    assert {o["version"] for o in outcomes if o["status"] != "failed"} == {1}
    for name, written in finished.items():
        assert (tmp_path / "out" / name / WEIGHTS).stat().st_mtime_ns == written
