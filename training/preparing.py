"""From pairs as they were given to everything that a training step reads.

Owns what is encoded, answered by the base and scored before the first step, for pairs, held-out
pairs and general prompts alike. Refuses how each is done, and the training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.anchors import base_answers
from training.cache import default_cache
from training.config import BAPOConfig
from training.data import PreferencePair, load_pairs
from training.encoding import EncodedPair, encode_pairs
from training.errors import DataError
from training.model import ResidentBase
from training.progress import bar
from training.prompts import encode_general, load_prompts
from training.scoring import with_cached_reference

Pairs = Sequence[PreferencePair] | str | Path


@dataclass(frozen=True)
class Prepared:
    """Everything a training step reads: pairs, held-out pairs, and general prompts.

    Encoded, with their base answers and references.
    """

    pairs: list[EncodedPair]
    held_out: list[EncodedPair]
    general: list[EncodedPair]


def pairs_of(pairs: Pairs) -> list[PreferencePair]:
    """Pairs that are here, or in a file or data set of that name."""
    return load_pairs(pairs) if isinstance(pairs, str | Path) else list(pairs)


def encode_all(
    base: ResidentBase,
    data: Sequence[PreferencePair],
    held_out: Sequence[PreferencePair],
    config: BAPOConfig,
) -> list[list[EncodedPair]]:
    """Pairs, held-out pairs and the config's general prompts as token ids."""
    limits = {
        "max_prompt_length": config.max_prompt_length,
        "max_completion_length": config.max_completion_length,
    }
    general: list[EncodedPair] = []
    if config.anchored and config.anchor_prompts:
        prompts = load_prompts(config.anchor_prompts)
        general = encode_general(base.tokenizer, prompts, config.max_prompt_length)
    return [*(encode_pairs(base.tokenizer, some, **limits) for some in (data, held_out)), general]


def prepare(
    base: ResidentBase,
    data: list[PreferencePair],
    config: BAPOConfig,
    *,
    held_out: Sequence[PreferencePair] = (),
    label: str | None = None,
) -> Prepared:
    """Encode pairs and general prompts, and find or make their base answers and references.

    Raises DataError where something does not fit the model's context.
    """
    parts = encode_all(base, data, held_out, config)
    rows = [row for part in parts for row in part]
    if config.anchored_on_base:
        with bar(label and f"{label}: base answers") as show:
            answers = base_answers(base, [r.prompt for r in rows], config, on_progress=show)
        rows = [r.anchored_on([a.tokens for a in of]) for r, of in zip(rows, answers, strict=True)]
    elif config.anchored:
        rows = [row.anchored_on_chosen() for row in rows]
    _refuse_past_window(base, rows)
    cache = Path(config.anchor_cache) if config.anchor_cache else default_cache()
    rows = with_cached_reference(
        base,
        rows,
        cache.with_name("references.jsonl"),
        batch_size=2 * config.per_device_train_batch_size,
        bf16=bool(config.bf16),
    )
    ends = (len(parts[0]), len(parts[0]) + len(parts[1]))
    return Prepared(rows[: ends[0]], rows[ends[0] : ends[1]], rows[ends[1] :])


def _refuse_past_window(base: ResidentBase, rows: list[EncodedPair]) -> None:
    """Longer than the model's context or its sliding window, scores would not be exact."""
    longest = max(len(r.prompt) + max(len(answer or ()) for answer in r.branches) for r in rows)
    settings = base.model.config
    limits = [settings.max_position_embeddings]
    if getattr(settings, "use_sliding_window", True) and getattr(settings, "sliding_window", None):
        limits.append(settings.sliding_window)
    if longest > min(limits):
        raise DataError(
            f"The longest prompt and answer have {longest} tokens together, the model reads"
            f" {min(limits)}; shorten the data or anchor_max_new_tokens."
        )
