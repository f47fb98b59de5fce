"""The texts that feedback may keep: a prompt as messages, an answer as text.

Owns what is plain enough to learn from later, and its size; strangers write all of it. Refuses
anything that a chat template would have to see besides roles and texts (images, tool calls).
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from adapters.errors import InvalidFeedback

LONGEST_TEXT = 128 * 1024
"""Bytes of a prompt's messages together, and of one answer."""
ROLES = frozenset({"system", "developer", "user", "assistant"})

Message = dict[str, str]
"""`role` and `content`."""


def is_keepable(text: object) -> bool:
    """Whether it is a text that every database takes, not blank and not too long."""
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        return False
    try:
        return len(text.encode()) <= LONGEST_TEXT
    except UnicodeEncodeError:  # half a character, which JSON can spell
        return False


def plain_turns(messages: object) -> list[Message] | None:
    """The messages as roles and texts, of which the last is a user's; None for others."""
    if not isinstance(messages, list) or not messages:
        return None
    turns = [_plain(message) for message in messages]
    if turns[-1] is None or turns[-1]["role"] != "user":
        return None
    plain = [turn for turn in turns if turn is not None]
    whole = "".join(turn["content"] for turn in plain)
    return plain if len(plain) == len(turns) and is_keepable(whole) else None


def check_prompt(prompt: str | Sequence[Message]) -> list[Message]:
    """A prompt that is given in words, as messages. Raises InvalidFeedback."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    turns = plain_turns(messages)
    if turns is None or not turns[-1]["content"].strip():
        raise InvalidFeedback(
            "The prompt must be text, or messages with a role and a text of which the last is the"
            f" user's, of at most {LONGEST_TEXT} bytes."
        )
    return turns


def check_text(text: str, name: str) -> str:
    """Raises InvalidFeedback for an answer that nothing could be learned from."""
    if not is_keepable(text):
        raise InvalidFeedback(
            f"'{name}' must be a text that is not blank, of at most {LONGEST_TEXT} bytes."
        )
    return text


def digest_of(prompt: Sequence[Message], *answers: str) -> str:
    """64 hexadecimal digits for a prompt, or for it and some answers in whatever order."""
    text = json.dumps([list(prompt), sorted(answers)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(message: Any) -> Message | None:
    if not isinstance(message, dict) or message.get("tool_calls"):
        return None
    role, text = message.get("role"), _text_of(message.get("content"))
    return {"role": role, "content": text} if role in ROLES and text is not None else None


def _text_of(content: object) -> str | None:
    """Text, or parts that are all text, which vLLM puts on lines of their own."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = [part.get("text") if isinstance(part, dict) else part for part in content]
    if not all(isinstance(text, str) for text in texts):
        return None
    return "\n".join(map(str, texts))
