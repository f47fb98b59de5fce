"""The base model's own answers, and the file where they are kept.

Owns how base answers are sampled and their cache: an append-only JSONL file that is keyed
by (base model, prompt, sampling, seed), so every user and every method that starts from
the same base shares it. Refuses the anchor's loss. A line once written is never changed;
a line that a killed process left half-written is passed over and its answer made again.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from platformdirs import user_cache_path

from training.config import BAPOConfig
from training.encoding import Tokens
from training.generation import Completion, complete
from training.model import ResidentBase

logger = logging.getLogger(__name__)


class AnchorCache:
    """Base answers by key, in memory and, line by line, on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._answers: dict[str, Completion] = {}
        self._torn = False
        if path.is_file():
            self._read()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Completion | None:
        """The answer kept under `key`, if there is one."""
        return self._answers.get(key)

    def add(self, answers: dict[str, Completion]) -> None:
        """Keep answers, in memory and on disk, before anything is made of them."""
        lines = [
            json.dumps({"key": key, "tokens": a.tokens, "finish_reason": a.finish_reason})
            for key, a in answers.items()
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A torn last line gets its line break now, or it would swallow our first one.
        text = ("\n" if self._torn else "") + "".join(line + "\n" for line in lines)
        with self.path.open("ab", buffering=0) as file:
            file.write(text.encode())
            os.fsync(file.fileno())
        self._torn = False
        self._answers.update(answers)

    def _read(self) -> None:
        content = self.path.read_bytes()
        self._torn = bool(content) and not content.endswith(b"\n")
        for number, line in enumerate(content.splitlines(), start=1):
            try:
                record = json.loads(line)
                self._answers[record["key"]] = Completion(
                    tuple(record["tokens"]), record["finish_reason"]
                )
            except (ValueError, KeyError, TypeError):
                logger.warning("%s:%d is not readable and is passed over", self.path, number)


def default_cache() -> Path:
    """Where base answers are kept when nothing else is said; one file for all models."""
    return Path(user_cache_path("bapo")) / "base-answers.jsonl"


def base_answers(
    base: ResidentBase,
    prompts: Sequence[Tokens],
    config: BAPOConfig,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Completion]:
    """The base model's answer to each prompt, from the cache or made now.

    `base` must have no adapter on it. `on_progress` gets (done, to do) as batches finish.
    """
    cache = AnchorCache(Path(config.anchor_cache) if config.anchor_cache else default_cache())
    keys = [_key(base, prompt, config) for prompt in prompts]
    missing = {k: p for k, p in zip(keys, prompts, strict=True) if cache.get(k) is None}
    names = list(missing)
    before = len(cache)

    def keep(indices: list[int], answers: list[Completion]) -> None:
        cache.add({names[i]: answer for i, answer in zip(indices, answers, strict=True)})
        if on_progress is not None:
            on_progress(len(cache) - before, len(names))

    complete(
        base.model,
        base.tokenizer,
        list(missing.values()),
        max_new_tokens=config.anchor_max_new_tokens,
        batch_size=config.anchor_batch_size,
        temperature=config.anchor_temperature,
        seeds=[int(name[:15], 16) for name in names],
        on_batch=keep,
    )
    return [answer for key in keys if (answer := cache.get(key)) is not None]


def _key(base: ResidentBase, prompt: Tokens, config: BAPOConfig) -> str:
    """What an answer depends on, hashed; it also seeds the sampling of that answer."""
    sampling = {
        "base": base.info.fingerprint,
        "prompt": prompt,
        "temperature": config.anchor_temperature,
        "max_new_tokens": config.anchor_max_new_tokens,
        "seed": config.seed if config.anchor_temperature > 0 else None,
    }
    return hashlib.sha256(json.dumps(sampling, sort_keys=True).encode()).hexdigest()
