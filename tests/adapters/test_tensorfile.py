"""A safetensors header is believed only when all of it fits together."""

import io
import json
import math
import time
import tracemalloc
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from adapters.strictjson import Malformed
from adapters.tensorfile import (
    BLOCK,
    MAX_HEADER_BYTES,
    TensorEntry,
    decode,
    encode_bf16,
    header_bytes,
    read_blocks,
    read_header,
)

from header_bombs import KINDS, bomb


def file_with(header: Mapping[str, Any] | bytes, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(begin: int, end: int, shape: list[Any], dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refused(content: bytes, says: str) -> None:
    with pytest.raises(Malformed, match=says):
        read_header(io.BytesIO(content), len(content))


def test_what_is_written_is_read() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = header_bytes({"a": ("F32", (2, 3))}) + values.tobytes()
    header = read_header(io.BytesIO(content), len(content))
    (entry,) = header
    assert (entry.name, entry.shape, entry.elements) == ("a", (2, 3), 6)
    (block,) = read_blocks(io.BytesIO(content), entry)
    np.testing.assert_array_equal(block, values.ravel())


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_a_large_tensor_is_read_in_blocks(dtype: str) -> None:
    """Two whole blocks and a piece; the file may be read elsewhere in between."""
    values = np.arange(2 * BLOCK + 3, dtype=np.uint16).view("<f2").astype(np.float32)
    values = np.where(np.isfinite(values), values, 0).astype(np.float32)
    raw = {"F32": values.tobytes(), "F16": values.astype("<f2").tobytes()}.get(dtype)
    raw = encode_bf16(values) if raw is None else raw
    file = io.BytesIO(b"before" + raw + b"after")
    blocks = []
    for block in read_blocks(file, TensorEntry("a", dtype, values.shape, 6, 6 + len(raw))):
        blocks.append(block)
        file.seek(0)
    assert [len(block) for block in blocks] == [BLOCK, BLOCK, 3]
    np.testing.assert_array_equal(np.concatenate(blocks), decode(raw, dtype))


def test_a_file_that_shrank_since_its_header_was_read() -> None:
    entry = TensorEntry("a", "F32", (4,), 0, 16)
    with pytest.raises(Malformed, match="ends inside the tensor 'a'"):
        list(read_blocks(io.BytesIO(b"\0" * 12), entry))


@pytest.mark.parametrize("kind", KINDS)
def test_a_header_costs_no_more_than_some_times_its_size(kind: str) -> None:
    content = bomb(kind, 2**20)
    began = time.perf_counter()
    tracemalloc.start()
    with pytest.raises(Malformed):
        read_header(io.BytesIO(content), len(content))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * len(content)
    assert time.perf_counter() - began < 15  # of which tracing is most


def test_the_header_is_padded_to_eight_bytes() -> None:
    assert all(len(header_bytes({"a" * n: ("BF16", (1,))})) % 8 == 0 for n in range(1, 9))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "too short"),
        (b"\x08\x00\x00", "too short"),
        ((2**63).to_bytes(8, "little") + b"{}", "claims a header"),
        ((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}", "claims a header"),
        ((1000).to_bytes(8, "little") + b"{}", "truncated"),
        (file_with(b"not json", b""), "not valid JSON"),
        (file_with({"a": tensor(0, 8, [2])}, b"\0" * 4), "truncated"),
        (file_with({"a": tensor(0, 8, [2])}, b"\0" * 12), "after its last tensor"),
        (file_with({}, b"\0" * 4), "after its last tensor"),
        (file_with({"a": tensor(4, 8, [1])}, b"\0" * 8), "hole"),
        (file_with({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, b"\0" * 12), "overlap"),
        (file_with({"a": tensor(0, 8, [2]), "b": tensor(0, 8, [2])}, b"\0" * 8), "overlap"),
        (file_with({"a": tensor(-8, 0, [2])}, b"\0" * 8), "positions"),
        (file_with({"a": tensor(8, 0, [2])}, b"\0" * 8), "fill"),
        (file_with({"a": tensor(0, 8, [3])}, b"\0" * 8), "fill"),
        (file_with({"a": tensor(0, 8, [-2])}, b"\0" * 8), "list of sizes"),
        (file_with({"a": tensor(0, 8, [2.0])}, b"\0" * 8), "list of sizes"),
        (file_with({"a": tensor(0, 4, [True])}, b"\0" * 4), "list of sizes"),
        (file_with({"a": tensor(0, 4, [1] * 9)}, b"\0" * 4), "list of sizes"),
        (file_with({"a": tensor(0, 10**10, [25 * 10**8])}, b"\0" * 8), "truncated"),
        (file_with({"a": tensor(0, 0, [2**62, 2**62])}, b""), "fill"),
        (file_with({"a": tensor(0, 8, [8], "I8")}, b"\0" * 8), "save it as"),
        (file_with({"a": tensor(0, 8, [1], "F64")}, b"\0" * 8), "save it as"),
        (file_with({"a": tensor(0, 8, [1], ["F32"])}, b"\0" * 8), "save it as"),
        (file_with({"a": {"dtype": "F32"}}, b""), "other fields"),
        (file_with({"a": [1]}, b""), "other fields"),
        (file_with({"a": tensor(0, 4, [1]) | {"x": 1}}, b"\0" * 4), "other fields"),
        (file_with({"__metadata__": {"a": 1}}, b""), "__metadata__"),
        (file_with(b'{"a":1,"a":2}', b""), "twice"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(content: bytes, says: str) -> None:
    refused(content, says)


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (1.0, 0x3F80),
        (-2.0, 0xC000),
        (1 + 2**-8, 0x3F80),  # half way between two: the even one
        (1 + 3 * 2**-8, 0x3F82),  # half way again: up, to the even one
        (1 + 2**-8 + 2**-20, 0x3F81),
        (0.0, 0x0000),
        (-0.0, 0x8000),
    ],
)
def test_bf16_is_rounded_to_nearest_even(value: float, bits: int) -> None:
    assert encode_bf16(np.array([value], np.float32)) == bits.to_bytes(2, "little")


def test_bf16_agrees_with_torch() -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).normal(0, 1, 10_000).astype(np.float32)
    by_torch = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(decode(encode_bf16(values), "BF16"), by_torch)


@pytest.mark.parametrize("bits", [0x7F7F8000, 0xFF7F8000, 0x7F800001, 0xFFFFFFFF, 0x7FFFFFFF])
def test_no_pattern_of_bits_passes_for_a_number(bits: int) -> None:
    """The first that rounds to infinity, and those that an addition would carry over to zero."""
    with pytest.raises(Malformed, match="bf16"):
        encode_bf16(np.array([0, bits], np.uint32).view(np.float32))
    assert encode_bf16(np.array([0x7F7F7FFF], np.uint32).view(np.float32)) == b"\x7f\x7f"


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 3.4e38, 1e300])
def test_what_bf16_cannot_hold_is_refused(value: float) -> None:
    with pytest.raises(Malformed, match="bf16"):
        encode_bf16(np.array([value], np.float64))
