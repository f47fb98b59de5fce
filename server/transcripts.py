"""What was asked and what was answered, read from the bytes that came and went.

Owns the shapes of the inference routes, whole and streamed, and what of them is worth learning
from: plain texts of answers that came to their own end. An answer that was cut short (by a limit, a
fault, a client that left), that calls tools, or to a raw prompt without turns has no text here; it
can be rated all the same. Refuses to keep anything. Runs after an answer is out, in a thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from adapters.turns import Message, is_keepable, plain_turns

LONGEST_ID = 128

Piece = bytes | str | memoryview
Document = dict[str, Any]


@dataclass
class Said:
    """One choice of an answer, as it comes."""

    parts: list[str] = field(default_factory=list)
    plain: bool = True
    ended: bool = False

    @property
    def text(self) -> str | None:
        """The whole text; None where nothing should be learned from it."""
        whole = "".join(self.parts)
        return whole if self.plain and self.ended and is_keepable(whole) else None


@dataclass
class Transcript:
    """The answers to one request by the index of their choice, and how clients name them."""

    completion_id: str | None = None
    choices: dict[int, Said] = field(default_factory=dict)

    def named(self, completion_id: object) -> None:
        if isinstance(completion_id, str) and 0 < len(completion_id) <= LONGEST_ID:
            self.completion_id = self.completion_id or completion_id

    def choice(self, index: int) -> Said:
        return self.choices.setdefault(index, Said())


def prompt_of(route: str, body: bytes) -> list[Message] | None:
    """The prompt as plain turns; None where there is more to it, or no turns."""
    try:
        asked = json.loads(body)
    except ValueError:
        return None
    if not isinstance(asked, dict) or asked.get("tools"):
        return None
    messages = ASKED.get(route, _no_turns)(asked)
    return plain_turns(messages)


def transcript_of(route: str, pieces: Iterable[Piece]) -> Transcript:
    """What these pieces of an answer's body say. Raises ValueError, KeyError, TypeError."""
    found = Transcript()
    read = ANSWERED[route]
    for document in _documents(pieces):
        read(found, document)
    return found


def _documents(pieces: Iterable[Piece]) -> Iterator[Document]:
    """A whole body, or the data of each event; what broke off in the middle is left out."""
    whole = b"".join(p.encode() if isinstance(p, str) else bytes(p) for p in pieces)
    if whole.startswith(b"{"):
        yield json.loads(whole)
        return
    for line in whole.split(b"\n"):
        data = line.removeprefix(b"data: ").strip()
        if data.startswith(b"{") and data.endswith(b"}") and data != line.strip():
            yield json.loads(data)


# What was asked


def _chat_turns(asked: Document) -> object:
    return asked.get("messages")


def _anthropic_turns(asked: Document) -> object:
    system, turns = asked.get("system"), asked.get("messages")
    if not system or not isinstance(turns, list):
        return turns
    return [{"role": "system", "content": system}, *turns]


def _responses_turns(asked: Document) -> object:
    given = asked.get("input")
    turns = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not asked.get("instructions") or not isinstance(turns, list):
        return turns
    return [{"role": "system", "content": asked["instructions"]}, *turns]


def _no_turns(asked: Document) -> object:
    return None


# What was answered


def _chat(found: Transcript, document: Document) -> None:
    found.named(document.get("id"))
    for choice in document.get("choices", ()):
        said = found.choice(choice["index"])
        message = choice.get("message") or choice.get("delta") or {}
        said.parts.append(message.get("content") or "")
        said.plain = said.plain and not message.get("tool_calls")
        said.ended = said.ended or choice.get("finish_reason") == "stop"


def _completion(found: Transcript, document: Document) -> None:
    found.named(document.get("id"))
    for choice in document.get("choices", ()):
        found.choice(choice["index"]).plain = False


def _anthropic(found: Transcript, document: Document) -> None:
    said = found.choice(0)
    message = document.get("message") or document
    if document.get("type") in ("message", "message_start"):
        found.named(message.get("id"))
    blocks = [*(message.get("content") or ()), document.get("content_block") or {}]
    blocks += [document.get("delta") or {}]
    for block in blocks:
        said.parts.append(block.get("text") or "")
        said.plain = said.plain and block.get("type") not in ("tool_use", "input_json_delta")
        said.ended = said.ended or block.get("stop_reason") == "end_turn"
    said.ended = said.ended or message.get("stop_reason") == "end_turn"


def _responses(found: Transcript, document: Document) -> None:
    response = document.get("response") or document
    if response.get("object") != "response":
        return  # a piece of a stream, of which the last has all
    found.named(response.get("id"))
    said = found.choice(0)
    if response.get("status") != "completed":
        return
    for item in response.get("output", ()):
        for part in item.get("content") or () if item.get("type") == "message" else ():
            said.parts.append(part.get("text") or "")
        said.plain = said.plain and item.get("type") in ("message", "reasoning")
    said.ended = True


ASKED: dict[str, Callable[[Document], object]] = {
    "/v1/chat/completions": _chat_turns,
    "/v1/messages": _anthropic_turns,
    "/v1/responses": _responses_turns,
}
ANSWERED: dict[str, Callable[[Transcript, Document], None]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completion,
    "/v1/messages": _anthropic,
    "/v1/responses": _responses,
}
