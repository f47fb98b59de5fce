"""How much may one request ask for? Bounds on counts in the body of an inference request.

Owns the table of them and the sentence of a refusal. What bytes may come in is `limits.py`'s, how
many requests is not decided here, and the length of a prompt is the engine's to measure, against
`max_model_len`. Works on any request body, by the names that its fields have in vLLM.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from server.errors import BadRequest
from server.settings import Settings

ANSWER_TOKENS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
LISTS = {
    "tools": "max_tools",
    "logit_bias": "max_logit_bias",
    "stop": "max_stops",
    "stop_sequences": "max_stops",
    "stop_token_ids": "max_stops",
    "bad_words": "max_stops",
}
"""Fields with a length, and the setting that bounds it."""


def check_bounds(request: Any, settings: Settings) -> None:
    """Raise BadRequest for the first field that asks for more than one request may.

    A request that does not say how long its answer may be gets the longest that is allowed.
    """
    fields = vars(request)  # as attributes, deprecated ones make a warning each time
    for name, setting in LISTS.items():
        value, bound = fields.get(name), getattr(settings, setting)
        if isinstance(value, Sized) and not isinstance(value, str) and len(value) > bound:
            raise BadRequest(f"{name} has {len(value)} entries, more than {bound}", param=name)
    _check_sequences(fields, settings.max_sequences)
    _check_answer(request, settings.max_answer_tokens)


def _check_sequences(fields: dict[str, Any], bound: int) -> None:
    """Prompts in one request times answers to each, or beams."""
    answers = max(fields.get("n") or 1, fields.get("best_of") or 1)
    prompts = _prompts(fields.get("prompt"))
    if answers * prompts > bound:
        raise BadRequest(
            f"{prompts} prompts with n={answers} are more than {bound} answers in one request",
            param="n" if answers > 1 else "prompt",
        )


def _prompts(prompt: Any) -> int:
    """A text and a list of token ids are one prompt, a list of either as many as it has."""
    several = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
    return len(prompt) if several else 1


def _check_answer(request: Any, bound: int | None) -> None:
    if bound is None:
        return
    asked = {name: vars(request)[name] for name in ANSWER_TOKENS if name in vars(request)}
    for name, tokens in asked.items():
        if tokens is not None and tokens > bound:
            raise BadRequest(f"{name} is {tokens}, more than the {bound} allowed", param=name)
    if asked and all(tokens is None for tokens in asked.values()):
        setattr(request, [*asked][-1], bound)
