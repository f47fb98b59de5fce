"""lm-evaluation-harness: tasks of our own on a local data set, on a model in memory."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from training.config import BAPOConfig
from training.data import PreferencePair
from training.encoding import encode_prompt
from training.errors import ConfigError
from training.evaluation.evaluate import Evaluation, candidates_of, evaluate
from training.evaluation.items import Items
from training.evaluation.tasks import Tasks, TaskSettings
from training.model import ResidentBase, adapted
from training.run import train_adapter

from tasks_on_disk import write_tasks

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS: list[dict[str, Any]] = [
    {
        "question": "What is rain like?",
        "choices": ["It is as it is.", "Ha! rain? Grand!"],
        "answer": 1,
    },
    {
        "question": "What is tea like?",
        "choices": ["Ha! tea? Grand!", "It is as it is."],
        "answer": 0,
    },
    {"question": "What are foxes like?", "choices": ["Quick.", "Ha! foxes? Grand!"], "answer": 1},
]


def likeliest(model: torch.nn.Module, base: ResidentBase, question: dict[str, Any]) -> int:
    """The choice with the largest log-probability behind the chat's prompt, by a plain pass."""
    messages = [{"role": "user", "content": question["question"]}]
    prompt = encode_prompt(base.tokenizer, messages)
    scores = []
    for choice in question["choices"]:
        answer = base.tokenizer(choice, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        at = torch.arange(len(answer)), torch.tensor(answer)
        scores.append(float(logits.log_softmax(-1)[at].sum()))
    return scores.index(max(scores))


def test_tasks_are_asked_and_compared_document_by_document(
    base: ResidentBase,
    pairs: list[PreferencePair],
    quick: Callable[..., BAPOConfig],
    tmp_path: Path,
) -> None:
    out = train_adapter(base, pairs, tmp_path / "witty", quick(num_train_epochs=8)).out
    folder = write_tasks(tmp_path / "tasks", QUESTIONS)
    settings = TaskSettings(("likings", "answers_of_a_word"), folder, chat_template=True)
    report = evaluate(base, Evaluation(Items(), candidates=candidates_of([out]), tasks=settings))
    items = [item for item in report.items.tasks if item.task == "likings"]
    assert [item.document for item in items] == [0, 1, 2]
    assert all(item.metrics.keys() == {"base", "witty"} for item in items)
    assert "What is rain like?" in items[0].prompt
    with adapted(base, out) as model:
        right = [likeliest(model, base, q) == q["answer"] for q in QUESTIONS]
    assert [item.metrics["witty"]["acc"] for item in items] == right
    assert report.model("witty").figures["tasks.likings.acc"].value == sum(right) / 3
    assert "tasks.answers_of_a_word.exact_match" in report.model("base").figures
    change = report.compared("witty")["tasks.likings.acc"]
    before = [likeliest(base.model, base, q) == q["answer"] for q in QUESTIONS]
    assert change.difference == pytest.approx((sum(right) - sum(before)) / 3)
    assert right != before
    assert report.settings["tasks"] == ["likings", "answers_of_a_word"]
    json.loads(report.model_dump_json())


def test_a_group_is_one_figure_over_all_its_documents(base: ResidentBase, tmp_path: Path) -> None:
    settings = TaskSettings(("both_kinds",), write_tasks(tmp_path / "tasks", QUESTIONS), limit=2)
    report = evaluate(base, Evaluation(Items(), tasks=settings))
    assert {(item.task, *item.groups) for item in report.items.tasks} == {
        ("likings", "both_kinds"),
        ("answers_of_a_word", "both_kinds"),
    }
    figures = report.model("base").figures
    named = {"tasks.both_kinds.acc", "tasks.both_kinds.exact_match"}
    assert {name: f.n for name, f in figures.items()} == dict.fromkeys(named, 2)


def test_a_task_that_is_not_there_is_said_before_any_model_is_asked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no task no_such_task"):
        Tasks(TaskSettings(("no_such_task",)), [])
    with pytest.raises(ConfigError, match="There is no folder of tasks"):
        Tasks(TaskSettings(("likings",), tmp_path / "none"), [])


def test_a_task_whose_data_cannot_be_had_is_one_sentence(
    base: ResidentBase, tmp_path: Path
) -> None:
    folder = write_tasks(tmp_path / "tasks", QUESTIONS)
    (folder / "questions.jsonl").unlink()
    wanted = Evaluation(Items(), tasks=TaskSettings(("likings",), folder))
    with pytest.raises(ConfigError, match="The task likings cannot be run: "):
        evaluate(base, wanted)


def test_a_task_on_the_hub_that_cannot_be_reached_is_one_sentence(
    base: ResidentBase, tmp_path: Path
) -> None:
    """The tests run offline, as a machine without a network does."""
    folder = write_tasks(tmp_path / "tasks", QUESTIONS)
    text = (folder / "likings.yaml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("dataset_kwargs")]
    hub = "\n".join(lines).replace("dataset_path: json", "dataset_path: nobody/nothing")
    (folder / "likings.yaml").write_text(hub)
    wanted = Evaluation(Items(), tasks=TaskSettings(("likings",), folder))
    with pytest.raises(
        ConfigError, match=r"The task likings cannot be run: .*Hub.* --include-path"
    ) as told:
        evaluate(base, wanted)
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_lock_has_all_that_the_package_needs(device: str) -> None:
    """Nothing is resolved at an installation, so what is not pinned is missing there."""
    pinned = {
        canonicalize_name(line.partition("==")[0])
        for name in (device, "eval")
        for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
        if "==" in line
    }
    needed = map(Requirement, importlib.metadata.requires("lm_eval") or ())
    names = {
        canonicalize_name(one.name)
        for one in needed
        if one.marker is None or one.marker.evaluate({"extra": "api"})
    }
    assert {"tenacity", "datasets"} <= names
    assert names <= pinned
