"""The base model's own answers, sampled once and kept.

Owns how base answers are sampled, by which engine, and the key they are cached under:
(base model, prompt, sampling, seed), so every user and every method that starts from the
same base shares them. Refuses the anchor's loss and the cache's file.
"""

import hashlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from training.cache import JsonlCache, Record, default_cache, open_cache
from training.config import BAPOConfig
from training.encoding import Tokens, stop_tokens
from training.errors import ConfigError
from training.generation import Completion, complete
from training.model import ResidentBase

WORTH_VLLM = {"cpu": 5_000, "cuda": 500}
"""Answers from which `anchor_engine: auto` starts vLLM; below, its start costs more than it saves.

Of the order of a start of some 15 s; not measured more finely."""

BaseAnswers = tuple[Completion, ...]
"""The answers to one prompt, `anchor_answers` of them."""


class Engine(Protocol):
    """Something that answers prompts and tells of every batch as it is done."""

    def __call__(
        self,
        prompts: Sequence[Tokens],
        *,
        seeds: Sequence[int],
        on_batch: Callable[[list[int], list[Completion]], None],
    ) -> object: ...


def base_answers(
    base: ResidentBase,
    prompts: Sequence[Tokens],
    config: BAPOConfig,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[BaseAnswers]:
    """The base model's answers to each prompt, from the cache or made now.

    `base` must have no adapter on it. `on_progress` gets (done, to do) as batches finish.
    """
    cache = _cache(config)
    keys = _keys(base, prompts, config)
    missing = {
        key: prompt
        for prompt, of_prompt in zip(prompts, keys, strict=True)
        for key in of_prompt
        if _completion(cache.get(key)) is None
    }
    names = list(missing)
    done = 0

    def keep(indices: list[int], answers: list[Completion]) -> None:
        nonlocal done
        cache.add({names[i]: _record(a) for i, a in zip(indices, answers, strict=True)})
        done += len(indices)
        if on_progress is not None:
            on_progress(done, len(names))

    if missing:
        engine = _engine(base, config, len(missing))
        # The key's own digits are the seed, so an answer does not depend on who else is asked.
        engine(list(missing.values()), seeds=[int(n[:15], 16) for n in names], on_batch=keep)
    return [tuple(a for key in of if (a := _completion(cache.get(key)))) for of in keys]


def known_answers(
    base: ResidentBase, prompts: Sequence[Tokens], config: BAPOConfig
) -> list[list[Tokens | None]]:
    """The answers to each prompt that are in the cache already; None where one is not."""
    cache = _cache(config)
    found = [[_completion(cache.get(k)) for k in of] for of in _keys(base, prompts, config)]
    return [[answer.tokens if answer else None for answer in of] for of in found]


def _cache(config: BAPOConfig) -> JsonlCache:
    return open_cache(config.anchor_cache or default_cache())


def _keys(base: ResidentBase, prompts: Sequence[Tokens], config: BAPOConfig) -> list[list[str]]:
    numbers = range(config.anchor_answers)
    return [[_key(base, prompt, config, number) for number in numbers] for prompt in prompts]


def _engine(base: ResidentBase, config: BAPOConfig, answers: int) -> Engine:
    """vLLM where it was asked for, or is installed and pays; else the model in memory."""
    wanted = config.anchor_engine
    if base.four_bit and wanted == "vllm":
        raise ConfigError(
            "anchor_engine vllm would answer with the whole base, not with the one in 4 bits that"
            " is trained on; take transformers or auto."
        )
    if wanted == "auto" and not base.four_bit:
        worth = answers >= WORTH_VLLM.get(base.model.device.type, answers + 1)
        wanted = "vllm" if worth and importlib.util.find_spec("vllm") else "transformers"
    if wanted == "vllm":
        from training.vllm_generation import complete_with_vllm

        return partial(
            complete_with_vllm,
            base.model.name_or_path,
            stops=stop_tokens(base.tokenizer, base.model),
            max_new_tokens=config.anchor_max_new_tokens,
            temperature=config.anchor_temperature,
        )
    return partial(
        complete,
        base.model,
        base.tokenizer,
        batch_size=config.anchor_batch_size,
        max_new_tokens=config.anchor_max_new_tokens,
        temperature=config.anchor_temperature,
    )


def _key(base: ResidentBase, prompt: Tokens, config: BAPOConfig, number: int) -> str:
    """What an answer depends on, hashed; it also seeds the sampling of that answer."""
    sampled = config.anchor_temperature > 0
    sampling = {
        "base": base.voice,
        "prompt": prompt,
        "temperature": config.anchor_temperature,
        "max_new_tokens": config.anchor_max_new_tokens,
        "seed": config.seed if sampled else None,
    }
    if number:  # the first answer keeps the key it had when there was only one
        sampling["number"] = number
    return hashlib.sha256(json.dumps(sampling, sort_keys=True).encode()).hexdigest()


def _record(answer: Completion) -> Record:
    return {"tokens": answer.tokens, "finish_reason": answer.finish_reason}


def _completion(record: Record | None) -> Completion | None:
    """The answer in a record; None where there is none that can be used."""
    tokens = (record or {}).get("tokens")
    if not isinstance(tokens, list | tuple) or not tokens:
        return None
    reason = (record or {}).get("finish_reason")
    return Completion(tuple(map(int, tokens)), "stop" if reason == "stop" else "length")
