"""Preference pairs: what one is, and how a record becomes one.

Owns the record's format (TRL's: `prompt`, `chosen`, `rejected` as text or as messages, the
prompt also implicit, other columns ignored) and everything that can be said of a pair
without a tokenizer. Refuses files and tokens; those are `sources.py`'s and `encoding.py`'s.
A pair that exists is usable: it ends with a user's turn to answer, and has two answers,
neither of them empty, that differ.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from training.errors import DataError
from training.sources import Record, read_records
from training.sources import read_jsonl as read_jsonl

Message = dict[str, str]
"""One chat message: `role` and `content`."""

PAIR_COLUMNS = ("prompt", "chosen", "rejected")
ANSWER_COLUMNS = ("chosen", "rejected")
"""Those that no record may lack."""

_HALF_A_CHARACTER = re.compile("[\ud800-\udfff]")  # JSON can spell one; no tokenizer takes it


@dataclass(frozen=True)
class PreferencePair:
    """Two answers to one prompt, and which of them is preferred.

    `prompt` is one user's message as text, or a whole conversation as messages.
    Raises DataError, one sentence, where the pair cannot teach anything.
    """

    prompt: str | tuple[Message, ...]
    chosen: str
    rejected: str

    def __post_init__(self) -> None:
        if not self.messages or not self.messages[-1]["content"].strip():
            raise DataError("the prompt is empty")
        if self.messages[-1]["role"] == "assistant":
            raise DataError("the prompt ends with an assistant's message; nothing is asked")
        for side in ANSWER_COLUMNS:
            if not getattr(self, side).strip():
                raise DataError(f"'{side}' is empty")
        if self.chosen == self.rejected:
            raise DataError("'chosen' and 'rejected' are identical")
        said = (part for message in self.messages for part in message.values())
        if any(map(_HALF_A_CHARACTER.search, (self.chosen, self.rejected, *said))):
            raise DataError("it has half a character (a lone surrogate); write the text as UTF-8")

    @property
    def messages(self) -> list[Message]:
        """The prompt as chat messages."""
        if isinstance(self.prompt, str):
            return [{"role": "user", "content": self.prompt}]
        return [dict(message) for message in self.prompt]


def load_pairs(source: str | Path) -> list[PreferencePair]:
    """Read every pair of a JSONL or Parquet file, a saved data set, or one of the Hub.

    `sources.py` lists how a source is written. Raises DataError as "FILE:LINE: what is wrong"
    or "FILE: row N: what is wrong" at the first record that is not a pair, and for a source
    that is missing or holds no pair at all.
    """
    records = read_records(source, PAIR_COLUMNS, needed=ANSWER_COLUMNS)
    pairs = [pair_of(record, where) for where, record in records]
    if not pairs:
        raise DataError(f"{source} is empty; give at least one preference pair.")
    return pairs


def pair_of(record: Record, where: str) -> PreferencePair:
    """The pair that a record holds; null counts as missing.

    Raises DataError that begins with `where`.
    """
    try:
        for side in ANSWER_COLUMNS:
            if record.get(side) is None:
                raise DataError(f"'{side}' is missing")
        prompt = _turns(record.get("prompt"), "prompt")
        chosen = _turns(record["chosen"], "chosen")
        rejected = _turns(record["rejected"], "rejected")
        if record.get("prompt") is None:
            prompt, chosen, rejected = _split_shared(chosen, rejected)
        return PreferencePair(
            prompt=prompt if isinstance(prompt, str) else tuple(prompt),
            chosen=_answer(chosen, "chosen"),
            rejected=_answer(rejected, "rejected"),
        )
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def save_pairs(pairs: Iterable[PreferencePair], path: str | Path) -> None:
    """Write pairs as JSONL, in the form `load_pairs` reads."""
    lines = (json.dumps(_record_of(pair), ensure_ascii=False) for pair in pairs)
    Path(path).write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def pairs_digest(pairs: Iterable[PreferencePair]) -> str:
    """The identity of a data set, "sha256:…"; the order of the pairs counts."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(json.dumps(_record_of(pair), sort_keys=True).encode())
    return f"sha256:{digest.hexdigest()}"


def _record_of(pair: PreferencePair) -> Record:
    return {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}


def _turns(value: object, name: str) -> str | list[Message]:
    """Text, or messages that each have a role and a content and nothing unreadable."""
    if value is None and name == "prompt":
        return []
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise DataError(f"'{name}' must be text or a list of messages")
    for message in value:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise DataError(f"'{name}' has a message without a text 'role' and 'content'")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _split_shared(
    chosen: str | list[Message], rejected: str | list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """The conversation that both sides begin with, and what each adds to it."""
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise DataError("'prompt' is missing; only lists of messages may leave it implicit")
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _answer(turns: str | list[Message], name: str) -> str:
    if isinstance(turns, str):
        return turns
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        raise DataError(f"'{name}' must add exactly one assistant's message to the prompt")
    return turns[0]["content"]
