"""Drift, choices and perplexity: against values computed another way, on trained adapters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from training.data import PreferencePair
from training.encoding import encode_answer, encode_prompt
from training.errors import DataError
from training.evaluation.asked import Asked
from training.evaluation.choices import load_choices, score_choices
from training.evaluation.drift import Drift, load_prompts, repetition
from training.evaluation.evaluate import Evaluation, candidates_of, evaluate
from training.evaluation.items import DriftItem, Items, TextItem
from training.evaluation.perplexity import Perplexity, Text, load_text, window_nll, windows
from training.model import ResidentBase, adapted
from training.run import train_adapter

POEM = "The fox is quick. The rain is slow. What is the sound of tea? " * 30


@pytest.fixture(scope="module")
def witty(base: ResidentBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from training.config import BAPOConfig

    work = tmp_path_factory.mktemp("witty")
    pairs = [
        PreferencePair(f"What is {s} like?", f"Ha! {s}? Grand!", "It is as it is.")
        for s in ("rain", "the sun", "tea", "music")
    ]
    config = BAPOConfig(
        learning_rate=5e-3,
        num_train_epochs=4,
        per_device_train_batch_size=2,
        anchor_cache=str(work / "anchors.jsonl"),
        anchor_max_new_tokens=12,
        output_dir=str(work / "trainer"),
        use_cpu=True,
        bf16=False,
    )
    return train_adapter(base, pairs, work / "witty", config).out


def test_drift_is_that_of_two_plain_forward_passes(base: ResidentBase, witty: Path) -> None:
    items = [
        DriftItem(of="user", prompt="What is rain like?"),
        DriftItem(of="general", prompt=({"role": "user", "content": "Foxes?"},)),
    ]
    report = evaluate(
        base, Evaluation(Items(drift=items), candidates=candidates_of([witty])), progress=False
    )
    ids = {}
    for item in items:
        messages = [{"role": "user", "content": "What is rain like?"}]
        if item.of == "general":
            messages = [{"role": "user", "content": "Foxes?"}]
        prompt = encode_prompt(base.tokenizer, messages)
        ids[item.of] = prompt
        score, own = item.scores["witty"], item.scores["base"]
        assert own.kl == own.log_ratio == 0
        assert own.entropy > 0
        assert not own.changed
        assert score.kl > 0
        assert score.changed == (score.text != own.text)
        assert score.length <= 48
    figures = report.model("witty").figures
    assert figures["drift.kl"].value == items[0].scores["witty"].kl
    assert figures["drift.general.kl"].value == items[1].scores["witty"].kl
    assert "drift.kl" not in report.model("base").figures

    drift = Drift(items[:1], seed=1, max_new_tokens=12)
    drift(Asked("base", base.model, base.tokenizer))
    ((prompt, answer),) = drift._sampled
    assert prompt == ids["user"]
    rows = torch.tensor([[*prompt, *answer]])
    where = slice(len(prompt) - 1, -1)
    with torch.no_grad():
        ref = base.model(rows).logits[0, where].log_softmax(-1)
        with adapted(base, witty) as model:
            ours = model(rows).logits[0, where].log_softmax(-1)
            drift(Asked("witty", model, base.tokenizer))
    score = items[0].scores["witty"]
    kl = (ref.exp() * (ref - ours)).sum(-1).mean()
    at = torch.arange(len(answer)), torch.tensor(answer)
    assert score.kl == pytest.approx(float(kl), abs=1e-5)
    assert score.log_ratio == pytest.approx(float((ours - ref)[at].mean()), abs=1e-5)
    assert score.entropy == pytest.approx(float(-(ours.exp() * ours).sum(-1).mean()), abs=1e-5)


def test_a_prompts_sample_depends_on_seed_and_prompt_alone(base: ResidentBase) -> None:
    def sampled(*prompts: str, seed: int = 1) -> dict[str, str]:
        items = [DriftItem(of="user", prompt=prompt) for prompt in prompts]
        Drift(items, seed=seed, max_new_tokens=12)(Asked("base", base.model, base.tokenizer))
        return {str(item.prompt): item.base_answer for item in items}

    alone = sampled("Tea?")
    assert sampled("Rain?", "Tea?")["Tea?"] == alone["Tea?"]
    assert sampled("Tea?", seed=2) != alone


def test_repetition_counts_grams_that_were_there_before() -> None:
    assert repetition([1, 2, 3]) == 0
    assert repetition(range(20)) == 0
    assert repetition([7] * 8) == 1 - 1 / 5
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == 1 - 4 / 5


def test_prompts_are_read_once_each(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = [
        {"prompt": "Tea?", "chosen": "a", "rejected": "b"},
        {"prompt": [{"role": "user", "content": "Tea?"}], "chosen": "c"},
        {"prompt": "Tea?", "user_id": 7},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    found = load_prompts(path, "user")
    assert [(item.prompt, item.user) for item in found] == [("Tea?", None), ("Tea?", "7")]
    path.write_text('{"prompt": ""}')
    with pytest.raises(DataError, match=r"prompts\.jsonl:1: 'prompt' must be text"):
        load_prompts(path, "user")
    path.write_text("")
    with pytest.raises(DataError, match="is empty"):
        load_prompts(path, "user")


def test_choices_are_scored_as_whole_answers(base: ResidentBase, tmp_path: Path) -> None:
    path = tmp_path / "choices.jsonl"
    lines = [
        {"prompt": "Rain?", "choices": ["wet", "dry and warm", "a long story"], "answer": 2},
        {"prompt": "Tea?", "choices": ["hot", "hot tea"], "answer": "hot", "topic": "tea"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    items = load_choices(path)
    assert [item.answer for item in items] == [2, 0]
    score_choices(items, Asked("base", base.model, base.tokenizer))
    for item in items:
        messages = [{"role": "user", "content": item.prompt}]
        prompt = encode_prompt(base.tokenizer, messages)
        score = item.scores["base"]
        assert len(score.logprobs) == len(item.choices)
        for choice, found in zip(item.choices, score.logprobs, strict=True):
            answer = encode_answer(base.tokenizer, messages, prompt, choice)
            rows = torch.tensor([[*prompt, *answer]])
            with torch.no_grad():
                alone = base.model(rows).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            at = torch.arange(len(answer)), torch.tensor(answer)
            assert found == pytest.approx(float(alone[at].sum()), abs=1e-3)
        assert score.raw == max(range(len(score.logprobs)), key=score.logprobs.__getitem__)
        per_byte = [p / len(c) for p, c in zip(score.logprobs, item.choices, strict=True)]
        assert score.normalised == max(range(len(per_byte)), key=per_byte.__getitem__)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": ""}, "'prompt' must be text"),
        ({"choices": ["one"]}, "2 to 100"),
        ({"choices": ["a", " "]}, "an entry that is no text"),
        ({"choices": ["a", "a"]}, "the same text twice"),
        ({"answer": 2}, "'answer' must be"),
        ({"answer": True}, "'answer' must be"),
        ({"answer": "c"}, "'answer' must be"),
        ({"user_id": [1]}, "'user_id' must be"),
    ],
)
def test_a_broken_question_is_named(change: dict[str, object], said: str, tmp_path: Path) -> None:
    path = tmp_path / "choices.jsonl"
    good = {"prompt": "?", "choices": ["a", "b"], "answer": 1}
    path.write_text("\n".join(map(json.dumps, [good, good | change])))
    with pytest.raises(DataError, match=rf"choices\.jsonl:2: .*{said}"):
        load_choices(path)


@pytest.mark.parametrize(
    ("length", "context", "stride"), [(2, 8, 4), (8, 8, 4), (9, 8, 4), (61, 16, 3)]
)
def test_windows_score_every_token_but_the_first_once(
    length: int, context: int, stride: int
) -> None:
    found = list(windows(length, context, stride))
    assert [k for w in found for k in range(w.scored, w.end)] == list(range(1, length))
    assert all(w.end - w.begin <= context for w in found)
    assert all(w.scored - w.begin >= context - stride for w in found[1:])


def test_a_perplexity_is_that_of_plain_forward_passes(base: ResidentBase, witty: Path) -> None:
    items: list[TextItem] = []
    measure = Perplexity([Text("poem.txt", POEM)], items)
    measure(Asked("base", base.model, base.tokenizer))
    tokens = base.tokenizer(POEM, verbose=False)["input_ids"]
    assert sum(item.tokens for item in items) == len(tokens) - 1
    assert len(items) > 2
    found = list(windows(len(tokens), 256, 128))
    for item, window in zip(items, found, strict=True):
        ids = torch.tensor([tokens[window.begin : window.end]])
        with torch.no_grad():
            logprobs = base.model(ids).logits[0, :-1].log_softmax(-1)
        of_targets = logprobs[torch.arange(ids.shape[1] - 1), ids[0, 1:]]
        alone = -float(of_targets[window.scored - window.begin - 1 :].sum())
        assert item.scores["base"].nll == pytest.approx(alone, rel=1e-4)
        assert item.start == window.scored
    with adapted(base, witty) as model:
        measure(Asked("witty", model, base.tokenizer))
        assert items[0].scores["witty"].nll == window_nll(model, tokens, found[0])
    assert items[0].scores["witty"].nll != items[0].scores["base"].nll
    with pytest.raises(DataError, match="--stride must be between 1 and 255"):
        Perplexity([Text("poem.txt", POEM)], [], stride=256)(
            Asked("base", base.model, base.tokenizer)
        )


def test_a_text_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    for content, said in ((b"\xff\xfe", "not UTF-8"), (b" \n", "is empty")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=said):
            load_text(path)
    with pytest.raises(DataError, match="cannot be read"):
        load_text(tmp_path / "none.txt")
