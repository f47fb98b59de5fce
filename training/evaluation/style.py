"""Does the model now say what the user wants to hear?

Owns one strict figure: how often the greedy answer to a prompt is, letter for letter, the
chosen answer. It is harsh (a paraphrase is a miss) and therefore hard to fool, and it
means something only where the same answer is preferred to many prompts.
"""

from collections.abc import Sequence

import torch
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from adapters.statistics import Proportion
from training.evaluation.retention import answer_texts
from training.progress import Tick, silent


def exact_style(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    wanted: Sequence[tuple[str, str]],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 128,
    tick: Tick = silent,
) -> Proportion:
    """How often the answer to each (prompt, chosen answer) is the chosen answer exactly."""
    texts = answer_texts(
        model,
        tokenizer,
        [prompt for prompt, _ in wanted],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        tick=tick,
    )
    return Proportion.of(
        text == answer.strip() for text, (_, answer) in zip(texts, wanted, strict=True)
    )
