"""General prompts: what the base is to go on answering as it does, whoever the user is.

Owns their file, JSONL with a `prompt` (text or messages; whatever stands beside it is
ignored, so a file of pairs or of questions will do), and their rows. Refuses pairs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from training.data import Message, read_jsonl
from training.encoding import EncodedPair, encode_prompt
from training.errors import DataError


def load_prompts(path: str | Path) -> list[list[Message]]:
    """Every prompt of a file as messages; raises DataError with file and line."""
    prompts = [messages_of(record.get("prompt"), where) for where, record in read_jsonl(path)]
    if not prompts:
        raise DataError(f"{path} is empty; give at least one general prompt.")
    return prompts


def encode_general(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[Message]], max_length: int
) -> list[EncodedPair]:
    """Rows without chosen and rejected; raises DataError naming the prompt, counted from 1."""
    rows = []
    for number, messages in enumerate(prompts, start=1):
        try:
            prompt = encode_prompt(tokenizer, messages)
        except DataError as error:
            raise DataError(f"General prompt {number}: {error}.") from error
        if len(prompt) > max_length:
            raise DataError(
                f"General prompt {number} has {len(prompt)} tokens, max_prompt_length is"
                f" {max_length}."
            )
        rows.append(EncodedPair(prompt, None, None, number=number))
    return rows


def messages_of(prompt: object, where: str) -> list[Message]:
    """The messages of a record's prompt, text or messages. Raises DataError with `where`."""
    if isinstance(prompt, str) and prompt.strip():
        return [{"role": "user", "content": prompt}]
    messages: list[Any] = prompt if isinstance(prompt, list) and prompt else [None]
    if not all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in messages):
        raise DataError(f"{where}: 'prompt' must be text that is not empty, or messages")
    return [{"role": str(m["role"]), "content": str(m["content"])} for m in messages]
