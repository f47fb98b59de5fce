"""The verbs as a user meets them: the exit code and what is said, once as a process of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from training.cli import anchors, train
from training.data import PreferencePair, save_pairs
from training.evaluation.cli import evaluate
from training.evaluation.results import read_report

ROOT = Path(__file__).resolve().parents[2]


def bapo(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "bapo.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )


def run(verb: typer.Typer, *arguments: object) -> Result:
    """The verb in this process, which has torch loaded already."""
    return CliRunner().invoke(verb, [str(argument) for argument in arguments])


@pytest.fixture
def data(tmp_path: Path, pairs: list[PreferencePair]) -> Path:
    save_pairs(pairs, tmp_path / "pairs.jsonl")
    return tmp_path / "pairs.jsonl"


def test_a_dry_run_says_what_would_happen_and_does_nothing(
    base_folder: Path, data: Path, tmp_path: Path
) -> None:
    words = ["--model", base_folder, "--data", data, "--out", tmp_path / "a", "--dry-run"]
    words += ["--anchor-cache", tmp_path / "c.jsonl", "--epochs", "2", "--batch-size", "4"]
    told = run(train, *words, "--anchor-max-new-tokens", "12")
    assert told.exit_code == 0, told.stderr
    for line in ("6, with 6 prompts", "6 still to be made", "MiB", "minutes"):
        assert line in told.stdout
    assert re.search(r"steps +│ 4 ", told.stdout)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.jsonl"]


def test_train_then_eval(base_folder: Path, data: Path, tmp_path: Path) -> None:
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(
        f"model: {base_folder}\ndata: {data}\nout: {tmp_path / 'a'}\nlearning_rate: 5e-3\n"
        f"anchor_cache: {tmp_path / 'answers.jsonl'}\nanchor_max_new_tokens: 12\nuse_cpu: true\n"
    )
    out = tmp_path / "b"
    trained = bapo("train", experiment, "--out", out, "--epochs", "6", "--batch-size=2")
    assert trained.returncode == 0, trained.stderr
    assert "6 pairs, reward accuracy 100%" in trained.stdout
    facts = tmp_path / "facts.jsonl"
    facts.write_text('{"prompt": "Is rain wet?", "answers": ["yes"]}\n')
    arguments = ["--model", base_folder, "--adapter", out, "--pairs", data, "--facts", facts]
    table = run(evaluate, *arguments)
    assert table.exit_code == 0, table.stderr
    assert "retention.facts" in table.stdout
    kept = tmp_path / "kept"
    found = json.loads(run(evaluate, *arguments, "--json", "--report", kept).stdout)
    assert [model["name"] for model in found["models"]] == ["base", "b"]
    assert found["models"][1]["figures"]["preference.accuracy"]["n"] == 6
    assert read_report(kept).model_dump(mode="json") == found


def test_anchors_fill_the_cache(base_folder: Path, data: Path, tmp_path: Path) -> None:
    cache = tmp_path / "answers.jsonl"
    made = run(anchors, "--model", base_folder, "--data", data, "--cache", cache)
    assert made.exit_code == 0, made.stderr
    assert "6 prompts answered" in made.stdout
    assert len(cache.read_text().splitlines()) == 6


def test_bad_input_is_one_sentence(base_folder: Path, data: Path, tmp_path: Path) -> None:
    broken, empty = tmp_path / "broken.jsonl", tmp_path / "empty.jsonl"
    broken.write_text(data.read_text() + "{oops\n")
    empty.write_text("")
    out = tmp_path / "out"
    good: dict[str, object] = {"--model": base_folder, "--data": data, "--out": out}
    cases: list[tuple[dict[str, object], str]] = [
        ({"--model": tmp_path / "none"}, "There is no model folder"),
        ({"--data": broken}, f"{broken}:7: not JSON"),
        ({"--data": empty}, "is empty"),
        ({"--anchor-typ": "hinge"}, "There is no setting 'anchor_typ'"),
    ]
    for change, said in cases:
        flags = [part for pair in (good | change).items() for part in pair]
        failed = run(train, *flags)
        assert failed.exit_code == 1
        assert said in failed.stderr
        assert len(failed.stderr.strip().splitlines()) == 1
        assert failed.stdout == ""
        assert not out.exists()


def test_wrong_usage_is_exit_code_2() -> None:
    assert run(evaluate).exit_code == 2
    assert run(train, "--epochs", "many").exit_code == 2


def test_help_loads_no_torch() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom training.cli import train\n"
        "from training.evaluation.cli import evaluate\n"
        "assert CliRunner().invoke(train, ['--help']).exit_code == 0\n"
        "assert CliRunner().invoke(evaluate, ['--help']).exit_code == 0\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


def test_the_public_names_are_there() -> None:
    import training

    assert all(getattr(training, name) for name in training.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(training, "nothing")  # noqa: B009
