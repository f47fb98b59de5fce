"""Base answers: whose they are, that they are kept, and what a killed process leaves."""

import json
import logging
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from training.anchors import base_answers
from training.cache import JsonlCache
from training.config import BAPOConfig
from training.encoding import encode_prompt
from training.generation import Completion, complete
from training.model import ResidentBase

Quick = Callable[..., BAPOConfig]
SUBJECTS = ["rain", "the sun", "a very long winter in the north", "tea"]


def prompts_of(base: ResidentBase) -> list[tuple[int, ...]]:
    return [encode_prompt(base.tokenizer, [{"role": "user", "content": s}]) for s in SUBJECTS]


def greedy_alone(base: ResidentBase, prompt: tuple[int, ...], steps: int) -> tuple[int, ...]:
    """The plain way: no batch, no cache, the whole text at every step."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(steps):
            ids.append(int(base.model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == base.tokenizer.eos_token_id:
                break
    return tuple(ids[len(prompt) :])


def test_batched_greedy_answers_are_those_of_each_prompt_alone(any_base: ResidentBase) -> None:
    prompts = prompts_of(any_base)
    answers = complete(any_base.model, any_base.tokenizer, prompts, max_new_tokens=9, batch_size=3)
    assert [a.tokens for a in answers] == [greedy_alone(any_base, p, 9) for p in prompts]


def test_a_row_that_ends_leaves_the_others_as_they_were(base: ResidentBase) -> None:
    prompts = prompts_of(base)
    full = complete(base.model, base.tokenizer, prompts, max_new_tokens=9)
    # Make a token that some answers contain, and others do not, the end of an answer.
    stop = full[0].tokens[2]
    before = base.model.generation_config.eos_token_id
    base.model.generation_config.eos_token_id = [stop]
    stopped = complete(base.model, base.tokenizer, prompts, max_new_tokens=9)
    base.model.generation_config.eos_token_id = before
    for whole, cut in zip(full, stopped, strict=True):
        if stop in whole.tokens:
            assert cut.tokens == whole.tokens[: whole.tokens.index(stop) + 1]
            assert cut.finish_reason == "stop"
        else:
            assert cut == whole
    assert stopped[0].finish_reason == "stop"


def test_a_sampled_answer_depends_on_its_own_seed_and_not_on_its_companions(
    base: ResidentBase,
) -> None:
    prompts = prompts_of(base)

    def sample(indices: list[int], seed: int = 0) -> list[Completion]:
        return complete(
            base.model,
            base.tokenizer,
            [prompts[i] for i in indices],
            max_new_tokens=8,
            temperature=1.0,
            seeds=[seed + i for i in indices],
        )

    together = sample([0, 1, 2, 3])
    assert sample([2]) == [together[2]]
    assert sample([3, 0]) == [together[3], together[0]]
    assert sample([0, 1, 2, 3], seed=99) != together


def test_sampling_follows_the_models_own_probabilities(base: ResidentBase) -> None:
    prompt = prompts_of(base)[0]
    with torch.no_grad():
        expected = base.model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    draws = complete(
        base.model,
        base.tokenizer,
        [prompt] * 2000,
        max_new_tokens=1,
        batch_size=2000,
        temperature=1.0,
        seeds=range(2000),
    )
    counts = torch.bincount(torch.tensor([d.tokens[0] for d in draws]), minlength=320) / 2000
    # Total variation of 2,000 draws from a distribution over 320 tokens is near 0.1.
    assert (counts - expected).abs().sum() / 2 < 0.2


def test_base_answers_are_made_once_and_kept(base: ResidentBase, quick: Quick) -> None:
    made: list[int] = []
    config = quick()
    prompts = prompts_of(base)

    def count(done: int, total: int) -> None:
        made.append(total)

    first = base_answers(base, [*prompts, prompts[0]], config, on_progress=count)
    again = base_answers(base, prompts, config, on_progress=count)
    assert made == [4]
    assert first == [*again, again[0]]
    lines = Path(str(config.anchor_cache)).read_text().splitlines()
    assert len(lines) == 4
    assert set(json.loads(lines[0])) == {"key", "tokens", "finish_reason"}


def test_other_sampling_gives_other_answers_in_the_same_file(
    base: ResidentBase, quick: Quick
) -> None:
    prompts = prompts_of(base)
    sampled = base_answers(base, prompts, quick())
    assert base_answers(base, prompts, quick(seed=5)) != sampled
    greedy = base_answers(base, prompts, quick(anchor_temperature=0))
    assert base_answers(base, prompts, quick(anchor_temperature=0, seed=5)) == greedy
    assert base_answers(base, prompts, quick()) == sampled


def test_a_torn_last_line_costs_that_line_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "answers.jsonl"
    cache = JsonlCache(path)
    cache.add({"a": {"tokens": [1, 2]}})
    cache.add({"b": {"tokens": [3]}})
    path.write_bytes(path.read_bytes()[:-9])
    with caplog.at_level(logging.WARNING):
        torn = JsonlCache(path)
    assert "answers.jsonl:2 is not readable" in caplog.text
    assert torn.get("a") == {"tokens": [1, 2]}
    assert torn.get("b") is None
    torn.add({"c": {"tokens": [4]}})
    whole = JsonlCache(path)
    assert whole.get("a")
    assert whole.get("c") == {"tokens": [4]}
    assert len(whole) == 2


def test_a_full_disk_costs_the_answers_that_did_not_fit(tmp_path: Path) -> None:
    cache = JsonlCache(tmp_path / "cache.jsonl")
    cache.add({"before": {"tokens": [1]}})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # it takes a part of the line
    try:
        with pytest.raises(OSError, match="File too large"):
            cache.add({"cut": {"tokens": list(range(100))}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert cache.get("cut") is None
    assert cache.path.stat().st_size == 100
    cache.add({"after": {"tokens": [2]}})
    read = JsonlCache(cache.path)
    assert [read.get(key) is not None for key in ("before", "cut", "after")] == [True, False, True]
