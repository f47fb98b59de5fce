"""lm-evaluation-harness: tasks of our own on a local data set, on a model in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from training.config import BAPOConfig
from training.data import PreferencePair
from training.encoding import encode_prompt
from training.errors import ConfigError
from training.evaluation.evaluate import Evaluation, candidates_of, evaluate
from training.evaluation.results import Items
from training.evaluation.tasks import Tasks, TaskSettings
from training.model import ResidentBase, adapted
from training.run import train_adapter

from tasks_on_disk import write_tasks

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
