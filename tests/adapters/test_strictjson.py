"""JSON from strangers is read one way or not at all."""

import time

import pytest

from adapters.strictjson import MAX_DEPTH, Malformed, parse_object

LIMIT = 8 * 2**20


def refused(data: bytes, says: str) -> None:
    with pytest.raises(Malformed, match=says):
        parse_object(data, max_bytes=LIMIT)


def test_an_object_is_read() -> None:
    text = '{"a": [1, 2.5, null, {"b": "[[{{ \\" é"}]}'
    assert parse_object(text.encode(), max_bytes=100) == {"a": [1, 2.5, None, {"b": '[[{{ " é'}]}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not valid JSON"),
        (b'{"a": 1', "not valid JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "too large"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"b": {"a": 1, "a": 2}}', "twice"),
        (b'{"a": "\xff"}', "UTF-8"),
        (b'\xef\xbb\xbf{"a": 1}', "not valid JSON"),
        ('{"a": 1}'.encode("utf-16"), "UTF-8"),
        (rb'{"a": "\ud800"}', "half a character"),
        (b'{"a": ' + b"[" * (MAX_DEPTH + 1), "deeper"),
        (b'{"a":' * 100_000, "deeper"),
        (b"{" + b" " * LIMIT + b"}", "more than"),
    ],
    ids=lambda value: value[:24].decode("latin-1") if isinstance(value, bytes) else None,
)
def test_anything_else_is_refused(data: bytes, says: str) -> None:
    refused(data, says)


@pytest.mark.parametrize("unit", [b'\\"', b'"', b'"\\', b"[]", b"]["])
def test_the_depth_is_counted_in_one_pass(unit: bytes) -> None:
    """Quotes that never close must not make the scan quadratic: 4 MiB take well under 5 s."""
    began = time.perf_counter()
    with pytest.raises(Malformed):
        parse_object(b'{"' + unit * (2**22 // len(unit)), max_bytes=LIMIT)
    assert time.perf_counter() - began < 5
