"""Evaluation: figures with known answers, on a model that was really trained."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.statistics import Proportion
from training.config import BAPOConfig
from training.data import PreferencePair
from training.errors import DataError, ModelError
from training.evaluation import retention
from training.evaluation.evaluate import Evaluation, candidates_of, evaluate
from training.evaluation.items import Items
from training.evaluation.preference import item_of, pair_accuracy
from training.evaluation.retention import (
    Question,
    answer_texts,
    facts_kept,
    is_right,
    load_questions,
)
from training.evaluation.style import exact_style
from training.model import ResidentBase, adapted
from training.run import train_adapter

Quick = Callable[..., BAPOConfig]


@pytest.mark.parametrize(
    ("said", "answer", "right"),
    [
        ("It is Rome.", "Rome", True),
        ("It is ROME!", "rome", True),
        ("It is Romeo.", "Rome", False),
        ("Port-au-Prince, of course", "Port au Prince", True),
        ("About 1,200 km", "200", True),
        ("12", "1", False),
        ("", "Rome", False),
    ],
)
def test_an_answer_counts_as_whole_words(said: str, answer: str, right: bool) -> None:
    assert is_right(said, [answer]) is right


def test_one_of_several_answers_is_enough() -> None:
    assert is_right("the Netherlands", ["Holland", "Netherlands"])


def test_questions_are_read_and_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    good = '{"prompt": "Capital of France?", "answers": ["Paris"], "topic": "capital"}\n'
    path.write_text(good)
    assert load_questions(path) == [Question("Capital of France?", ("Paris",), "capital")]
    for bad in (
        '{"prompt": "?", "answers": []}',
        '{"answers": ["a"]}',
        '{"prompt": "?", "answers": ["!"]}',
    ):
        path.write_text(good + bad + "\n")
        with pytest.raises(DataError, match=r"facts\.jsonl:2: "):
            load_questions(path)
    path.write_text("")
    with pytest.raises(DataError, match="is empty"):
        load_questions(path)


def test_facts_are_counted_over_greedy_answers(base: ResidentBase) -> None:
    prompts = ["What is rain?", "And tea?", "Foxes?"]
    said = answer_texts(base.model, base.tokenizer, prompts, max_new_tokens=6)
    words = [[w for w in text.split() if w.isalnum()] for text in said]
    questions = [Question(p, ("zzz", *w)) for p, w in zip(prompts, words, strict=True)]
    kept = facts_kept(base.model, base.tokenizer, questions, max_new_tokens=6)
    assert list(kept.texts) == said
    assert kept.right == tuple(bool(w) for w in words)
    assert kept.score.n == 3


def test_style_is_exact(base: ResidentBase) -> None:
    (said,) = answer_texts(base.model, base.tokenizer, ["And tea?"], max_new_tokens=6)
    wanted = [("And tea?", said), ("And tea?", said + "!")]
    assert exact_style(base.model, base.tokenizer, wanted, max_new_tokens=6) == Proportion(1, 2)


def test_base_and_adapter_stand_side_by_side(
    base: ResidentBase, pairs: list[PreferencePair], quick: Quick, tmp_path: Path
) -> None:
    out = train_adapter(base, pairs, tmp_path / "witty", quick(num_train_epochs=8)).out
    other = train_adapter(base, pairs, tmp_path / "v1" / "witty", quick(num_train_epochs=1)).out
    items = Items(
        pairs=[item_of(pair) for pair in pairs],
        questions=[retention.item_of(Question("Rain?", ("wet",)))],
    )
    names = (f"{tmp_path.name}/witty", "v1/witty")
    report = evaluate(base, Evaluation(items, candidates=candidates_of([out, other])))
    assert report.names == ["base", *names]
    assert report.model("base").figures.keys() == {"preference.likelihood", "retention.facts"}
    figure = report.model(names[0]).figures["preference.accuracy"]
    assert (figure.value, figure.n, figure.kind) == (1, 6, "rate")
    with adapted(base, out) as model:
        found = pair_accuracy(model, base.tokenizer, pairs)
    assert report.model(names[0]).figures["preference.likelihood"].value == found.likelihood.rate
    assert {(c.before, c.after, c.figure) for c in report.comparisons} == {
        ("base", name, figure)
        for name in names
        for figure in ("preference.likelihood", "retention.facts")
    }


def test_weights_that_are_no_numbers_are_said_so(
    base: ResidentBase, pairs: list[PreferencePair], quick: Quick, tmp_path: Path
) -> None:
    out = train_adapter(base, pairs, tmp_path / "nan", quick(num_train_epochs=1)).out
    weights = load_file(out / "adapter_model.safetensors")
    save_file(
        {k: torch.full_like(v, torch.nan) for k, v in weights.items()},
        out / "adapter_model.safetensors",
    )
    items = Items(pairs=[item_of(pair) for pair in pairs])
    with pytest.raises(ModelError, match=r"nan gives .* not finite"):
        evaluate(base, Evaluation(items, candidates=candidates_of([out])))


def test_the_margin_is_measured_against_the_base_and_not_a_copy(
    base: ResidentBase, pairs: list[PreferencePair], quick: Quick, tmp_path: Path
) -> None:
    out = train_adapter(base, pairs, tmp_path / "a", quick()).out
    turned = [PreferencePair(p.prompt, p.rejected, p.chosen) for p in pairs]
    with adapted(base, out) as model:
        assert pair_accuracy(model, base.tokenizer, pairs).margin == Proportion(6, 6)
        assert pair_accuracy(model, base.tokenizer, turned).margin == Proportion(0, 6)
    assert pair_accuracy(base.model, base.tokenizer, pairs).margin is None


def test_nothing_to_evaluate_on_is_an_error(base: ResidentBase) -> None:
    with pytest.raises(DataError, match="no preference pairs"):
        pair_accuracy(base.model, base.tokenizer, [])
