"""`bapo eval --history`: which version of an adapter lost something, and that it is said."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from adapters.base import POCKET, describe_base
from adapters.registry import open_registry
from training.evaluation.cli import evaluate
from training.evaluation.figures import complete
from training.evaluation.items import Answer, DriftItem, DriftScore, Items, QuestionItem
from training.evaluation.page import render
from training.evaluation.regression import with_history
from training.evaluation.results import BaseEntry, ModelEntry, Report

from plain_adapter import plain_adapter

N = 200


def report_of(wrong: Sequence[range]) -> Report:
    """Versions v1, v2 …, each wrong on its range of 200 questions; the base is always right."""
    names = ["base", *(f"v{number}" for number in range(1, len(wrong) + 1))]
    misses = dict(zip(names, [range(0), *wrong], strict=True))
    items = Items(
        questions=[
            QuestionItem(
                prompt=f"{n}?",
                answers=["yes"],
                said={m: Answer(text="yes", right=n not in misses[m]) for m in names},
            )
            for n in range(N)
        ]
    )
    models = [ModelEntry(name=name) for name in names]
    base = BaseEntry(name="x", fingerprint="sha256:0")
    return with_history(complete(Report(base=base, models=models, items=items, seed=0)))


def test_the_first_version_that_lost_something_is_named() -> None:
    report = report_of([range(10), range(12), range(40), range(42)])
    assert report.history is not None
    assert report.history.first == "v3"
    (sudden, *later) = report.history.losses
    assert (sudden.after, sudden.before, sudden.rival) == ("v3", "v2", "predecessor")
    assert (sudden.lost, sudden.gained, sudden.n) == (28, 0, N)
    assert {(loss.after, loss.before, loss.rival) for loss in later} == {
        ("v3", "v1", "best before"),
        ("v4", "v1", "best before"),
    }
    assert {(c.before, c.after) for c in report.comparisons} == {
        ("base", "v1"),
        ("v1", "v2"),
        ("v2", "v3"),
        ("v3", "v4"),
    }
    page = render(report)
    assert "v3 is the first version that lost something." in page
    assert "v3 against v2, its predecessor: questions answered right −14.0 points" in page


def test_a_slow_slide_is_seen_against_the_best_before() -> None:
    report = report_of([range(4 * step) for step in range(1, 7)])
    assert report.history is not None
    assert report.history.first is not None
    assert {loss.rival for loss in report.history.losses} == {"best before"}
    assert {loss.before for loss in report.history.losses} == {"v1"}


def test_what_comes_back_and_what_may_be_chance_is_no_loss() -> None:
    for wrong in ([range(40), range(10), range(8)], [range(10), range(13), range(10)], [range(9)]):
        report = report_of(wrong)
        assert report.history is not None
        assert report.history.losses == []
        assert report.history.first is None


def test_who_looks_often_has_to_see_more() -> None:
    """Six of 200 lost is p = 0.031: a loss where one pair is looked at, none of three (Holm)."""
    for wrong, lost in (([range(0), range(6)], 1), ([range(0), range(6), range(6)], 0)):
        report = report_of(wrong)
        assert report.history is not None
        assert len(report.history.losses) == lost


@pytest.fixture
def versions(tmp_path: Path) -> list[Path]:
    """Three versions for the pocket model; the second one's weights are far too large."""
    base = describe_base(POCKET)
    folders = [plain_adapter(tmp_path / f"v{n}", base, seed=n) for n in (1, 2, 3)]
    weights = folders[1] / "adapter_model.safetensors"
    save_file({k: (v * 30).astype("float32") for k, v in load_file(weights).items()}, weights)
    return folders


def test_going_further_from_the_base_is_no_loss() -> None:
    """Eight times as far on every prompt: sure, and no forgetting."""

    def score(kl: float) -> DriftScore:
        same = {"text": "yes", "length": 2, "cut": False, "repetition": 0.0, "changed": False}
        return DriftScore.model_validate({"kl": kl, "log_ratio": -kl, "entropy": 1.0} | same)

    report = report_of([range(1), range(1)])
    far = {"base": 0.0, "v1": 0.1, "v2": 0.8}
    for n in range(40):
        scores = {name: score(kl * (1 + n / 100)) for name, kl in far.items()}
        report.items.drift.append(DriftItem(of="user", prompt=f"{n}", scores=scores))
    found = with_history(complete(report))
    assert found.compared("v2", "v1")["drift.kl"].p_adjusted < 0.01
    assert found.history is not None
    assert found.history.losses == []


# Only one layer has weights, of which PEFT warns.
@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_versions_of_a_registry_and_folders_are_compared_alike(
    versions: list[Path], tmp_path: Path
) -> None:
    facts = tmp_path / "facts.jsonl"
    lines = (POCKET / "facts.jsonl").read_text().splitlines(keepends=True)
    facts.write_text("".join(lines[:: len(lines) // 60]))
    registry = open_registry(tmp_path / "data")
    for folder in versions:
        registry.publish("alice/tone", folder, base=describe_base(POCKET))
    registry.close()

    def history(*of: str) -> tuple[int, Any]:
        asked = [*("--model", str(POCKET)), *("--facts", str(facts)), "--json"]
        found = CliRunner().invoke(
            evaluate, [*asked, *(part for one in of for part in ("--history", one))],
            env={"BAPO_DATA_DIR": str(tmp_path / "data")},
        )  # fmt: skip
        return found.exit_code, json.loads(found.stdout)

    code, of_registry = history("alice/tone")
    assert code == 1
    assert of_registry["history"]["first"] == "alice/tone@2"
    code, of_folders = history(*map(str, versions))
    assert code == 1
    assert of_folders["history"]["first"] == "v2"
    code, _ = history(str(versions[0]), str(versions[2]))
    assert code == 0


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    facts = tmp_path / "facts.jsonl"
    facts.write_text('{"prompt": "?", "answers": ["yes"]}\n')
    asked = ["--model", str(POCKET), "--facts", str(facts), "--data-dir", str(tmp_path / "data")]
    for flags, said in (
        (["--history", "nobody"], "nobody"),
        (["--history", str(tmp_path), "--history", "gone"], "There is no adapter folder gone."),
        (["--history", "a", "--adapter", "b"], "leave out --adapter"),
    ):
        failed = CliRunner().invoke(evaluate, [*asked, *flags])
        assert failed.exit_code == 1
        assert said in failed.stderr
        assert len(failed.stderr.strip().splitlines()) == 1
