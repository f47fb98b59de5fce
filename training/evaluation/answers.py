"""What a model says to prompts, greedily, as text.

Owns the way from a prompt of an item to the answer's text, for every measure that reads answers.
"""

from collections.abc import Sequence

from training.encoding import encode_prompt
from training.evaluation.asked import Asked
from training.evaluation.items import Prompt, messages_of
from training.generation import complete
from training.progress import Tick, silent


def greedy_answers(
    asked: Asked, prompts: Sequence[Prompt], *, max_new_tokens: int, tick: Tick = silent
) -> list[str]:
    """One answer a prompt, in their order, without special tokens. Raises DataError."""
    found = complete(
        asked.model,
        asked.tokenizer,
        [encode_prompt(asked.tokenizer, messages_of(prompt)) for prompt in prompts],
        max_new_tokens=max_new_tokens,
        on_batch=lambda batch, _: tick(len(batch)),
    )
    return [decoded(asked, answer.tokens) for answer in found]


def decoded(asked: Asked, tokens: Sequence[int]) -> str:
    """The tokens of an answer as text, without special tokens."""
    return str(asked.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()
