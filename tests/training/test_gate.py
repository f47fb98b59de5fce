"""`bapo eval --gate`: thresholds, the judgement, and a verdict that the registry takes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adapters.artifact import read_manifest
from adapters.base import POCKET, describe_base
from adapters.gate import Gate
from adapters.registry import open_registry
from adapters.statistics import Proportion
from training.errors import ConfigError
from training.evaluation.cli import evaluate
from training.evaluation.gate import Measured, Threshold, judge, load_thresholds, measured
from training.evaluation.items import Answer, Items, QuestionItem, TextItem, TextScore

ROOT = Path(__file__).resolve().parents[2]
HELD_OUT = ROOT / "examples" / "preferences" / "pirate.heldout.jsonl"


def rate(hits: int, n: int) -> Measured:
    found = Proportion(hits, n)
    return Measured(found.rate, n, found.interval_at)


def test_confidence_is_about_the_end_of_the_interval() -> None:
    """70 of 100: Wilson's one-sided 95 % bounds are 0.62 and 0.77."""
    assert rate(70, 100).meets(Threshold(at_least=0.7))
    assert not rate(70, 100).meets(Threshold(at_least=0.7, confidence=0.95))
    assert rate(70, 100).meets(Threshold(at_least=0.61, confidence=0.95))
    assert rate(70, 100).meets(Threshold(at_most=0.78, confidence=0.95))
    assert not rate(70, 100).meets(Threshold(at_most=0.75, confidence=0.95))


def test_what_was_lost_is_paired_and_what_was_not_measured_fails() -> None:
    items = Items(
        questions=[
            QuestionItem(
                prompt="?",
                answers=["yes"],
                said={"base": Answer(text="", right=True), "a": Answer(text="", right=n >= 4)},
            )
            for n in range(200)
        ]
    )
    drop = measured("retention.drop", items, "a")
    assert drop is not None
    assert drop.value == pytest.approx(0.02)
    lines = judge(
        {
            "retention.drop": Threshold(at_most=0.02),
            "retention.facts": Threshold(at_least=0.98),
            "preference.accuracy": Threshold(at_least=0),
        },
        items,
        "a",
    )
    assert [line.passed for line in lines] == [True, True, False]
    assert lines[2].measured == "not measured"
    strict = judge({"retention.drop": Threshold(at_most=0.02, confidence=0.95)}, items, "a")
    assert not strict[0].passed


def test_a_perplexity_rises_by_a_share_of_the_bases() -> None:
    """0.1 nats a token more is exp(0.1) - 1 = 10.5 %, in every window, so without doubt."""
    items = Items(
        texts=[
            TextItem(
                source="t",
                start=n,
                tokens=10,
                scores={"base": TextScore(nll=20 + n), "a": TextScore(nll=21 + n)},
            )
            for n in range(20)
        ]
    )
    rise = measured("retention.perplexity.rise", items, "a")
    assert rise is not None
    assert rise.value == pytest.approx(0.10517, abs=1e-5)
    assert rise.meets(Threshold(at_most=0.106, confidence=0.95))
    assert not rise.meets(Threshold(at_most=0.105))
    assert measured("retention.perplexity.rise", items, "b") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "dictionary"),
        ("{}", "no thresholds"),
        ("retention.dorp: {at_most: 0.1}", "retention.dorp.*there are drift.changed,"),
        ("preference.accuracy.drop: {at_most: 0.1}", "no figure of this name"),
        ("retention.drop: {}", "at_least or at_most"),
        ("retention.drop: {at_most: 0.1, at_least: 0}", "at_least or at_most"),
        ("retention.drop: {at_most: .nan}", "less than or equal|finite|greater"),
        ("retention.drop: {at_most: 0.1, confidence: 95}", "confidence"),
        ("a: [", "not a YAML file"),
    ],
)
def test_a_broken_file_is_named(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_thresholds(path)
    with pytest.raises(ConfigError, match="no file of thresholds"):
        load_thresholds(tmp_path / "missing.yaml")


def test_the_committed_example_can_be_read() -> None:
    assert "retention.drop" in load_thresholds(ROOT / "configs" / "gates" / "default.yaml")


def test_a_verdict_from_the_command_is_what_a_registry_takes(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    adapter = tmp_path / "pirate"
    shutil.copytree(folders["pirate"], adapter)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(HELD_OUT.read_text().splitlines(keepends=True)[:24]))
    command = ["--model", str(POCKET), "--adapter", str(adapter), "--pairs", str(pairs)]
    command += ["--gate-key", str(tmp_path / "key.pem"), "--gate"]
    easy, hard = tmp_path / "easy.yaml", tmp_path / "hard.yaml"
    easy.write_text("preference.accuracy: {at_least: 0.5}\n")
    hard.write_text("preference.accuracy: {at_least: 0.5}\nretention.drop: {at_most: 0.1}\n")

    failed = CliRunner().invoke(evaluate, [*command, str(hard)])
    assert failed.exit_code == 1, failed.output
    assert "FAILED  retention.drop <= 0.1: not measured" in failed.output

    passed = CliRunner().invoke(evaluate, [*command, str(easy)])
    assert passed.exit_code == 0, passed.output
    manifest = read_manifest(adapter)
    assert manifest is not None
    assert manifest.verdict is not None
    gate = Gate(frozenset({manifest.verdict.key}))
    registry = open_registry(tmp_path / "data", gate=gate)
    try:
        made = registry.publish("pirate", adapter, base=describe_base(POCKET), activate=True)
    finally:
        registry.close()
    assert made.digest == manifest.verdict.digest
