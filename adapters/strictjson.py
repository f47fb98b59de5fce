"""JSON from strangers: one way to read it, bounded and unambiguous.

Owns reading an object out of untrusted bytes. Refuses to know what the object means.
What comes back has string keys used once, finite numbers only, and a nesting that no later
recursion can stumble over; everything else is `Malformed`, before it costs memory.
"""

import json
import math
import re
from typing import Any

MAX_DEPTH = 32

# A string left open matches to the end of the text: one pass, whatever the quotes.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+\\?(?:"|\Z)|[\[{\]}]', re.DOTALL)


class Malformed(ValueError):
    """Untrusted bytes are not what they claim; the text is a clause naming the reason."""


def parse_object(data: bytes, *, max_bytes: int) -> dict[str, Any]:
    """The JSON object in `data` (UTF-8, no byte order mark). Raises Malformed."""
    if len(data) > max_bytes:
        raise Malformed(f"is {len(data)} bytes long, more than the {max_bytes} allowed")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed(f"is not UTF-8 (byte {error.start})") from None
    _refuse_depth(text)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except Malformed:
        raise
    except json.JSONDecodeError as error:
        raise Malformed(f"is not valid JSON (line {error.lineno}, column {error.colno})") from None
    except (ValueError, RecursionError):  # e.g. an integer of more digits than Python parses
        raise Malformed("holds a number or nesting that is too large") from None
    if not isinstance(value, dict):
        raise Malformed("is not a JSON object")
    if "\\u" in text:
        _refuse_surrogates(value)
    return value


def _refuse_depth(text: str) -> None:
    """Count brackets outside strings, so that the parser never meets a deep document."""
    depth = 0
    for token in _STRING_OR_BRACKET.finditer(text):
        first = text[token.start()]
        if first in "[{":
            depth += 1
        elif first in "]}":
            depth -= 1
        if depth > MAX_DEPTH:
            raise Malformed(f"is nested deeper than {MAX_DEPTH} levels")


def _refuse_surrogates(value: dict[str, Any]) -> None:
    """An escape can make half a character, which no database and no terminal takes."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Malformed("holds an escape that is half a character") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise Malformed(f"has the key {key[:80]!r} twice")
        found[key] = value
    return found


def _refuse_constant(name: str) -> float:
    raise Malformed(f"holds {name}, which is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise Malformed(f"holds the number {digits[:20]}, which is too large")
    return value
