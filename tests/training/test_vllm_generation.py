"""Base answers from vLLM are those of the model in memory, and its failures are sentences."""

from pathlib import Path

import pytest

from training.anchors import base_answers
from training.cache import JsonlCache
from training.config import AnchorEngine, BAPOConfig
from training.encoding import Tokens, encode_prompt
from training.errors import ModelError
from training.generation import Completion
from training.model import ResidentBase
from training.vllm_generation import complete_with_vllm

QUESTIONS = ["What is the capital of Norway?", "Hello!", "Tell me about copper.", "3 plus 4?"]


def prompts_of(base: ResidentBase) -> list[Tokens]:
    return [encode_prompt(base.tokenizer, [{"role": "user", "content": q}]) for q in QUESTIONS]


def test_vllm_answers_as_the_model_in_memory_does(pocket: ResidentBase, tmp_path: Path) -> None:
    def answers(engine: AnchorEngine) -> object:
        config = BAPOConfig(
            anchor_engine=engine,
            anchor_temperature=0,
            anchor_max_new_tokens=24,
            anchor_cache=str(tmp_path / f"{engine}.jsonl"),
            use_cpu=True,
        )
        return base_answers(pocket, prompts_of(pocket), config)

    assert answers("vllm") == answers("transformers")
    assert len(JsonlCache(tmp_path / "vllm.jsonl")) == len(QUESTIONS)


def test_a_sampled_answer_depends_on_its_own_seed(pocket: ResidentBase) -> None:
    first, *others = prompts_of(pocket)
    prompts = [first, first, *others, first]
    answers: dict[int, Completion] = {}
    complete_with_vllm(
        pocket.model.name_or_path,
        prompts,
        stops=[int(pocket.tokenizer.eos_token_id or 0)],
        max_new_tokens=24,
        temperature=1.5,
        seeds=[7, 8, 9, 10, 11, 7],
        on_batch=lambda indices, done: answers.update(zip(indices, done, strict=True)),
    )
    assert answers[0] == answers[5]
    assert answers[0] != answers[1]


def test_a_vllm_that_does_not_start_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"vLLM did not answer .*anchor_engine: transformers"):
        complete_with_vllm(
            str(tmp_path),
            [(1, 2)],
            stops=[1],
            max_new_tokens=4,
            temperature=0,
            seeds=[1],
            on_batch=lambda indices, done: None,
        )
