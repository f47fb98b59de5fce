"""The safetensors format, read with suspicion and written one way only.

Owns the header's checks, element types and byte layout. Refuses to know what a tensor is
for. A `TensorFile` that exists is consistent: unique names, known types, offsets that tile
the data exactly and shapes that fill them, all settled before one byte of data is read.
Format: 8 bytes little-endian header length, a JSON header, then the tensors.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from adapters.strictjson import Malformed, parse_object

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.float64] | Floats

ELEMENT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
MAX_DIMENSIONS = 8
# 70B with every linear layer adapted needs 0.2 MiB; parsing costs some 20 times the text.
MAX_HEADER_BYTES = 4 * 2**20
# Elements worked on at once: a few MiB, whatever the tensor.
BLOCK = 2**17
# Bits of the smallest float32 that rounds to infinity, halfway between it and bf16's largest.
_BEYOND_BF16 = 0x7F7F8000


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file; `begin` and `end` are byte offsets from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class TensorFile:
    """The checked header of a safetensors file, tensors in file order."""

    entries: tuple[TensorEntry, ...]

    def __iter__(self) -> Iterator[TensorEntry]:
        return iter(self.entries)


def read_header(
    file: BinaryIO,
    size: int,
    *,
    element_bytes: Mapping[str, int] = ELEMENT_BYTES,
    max_header_bytes: int = MAX_HEADER_BYTES,
) -> TensorFile:
    """Parse and check the header of `file`, `size` bytes long, open at its start.

    Raises Malformed with every inconsistency that would let two readers disagree.
    """
    start = file.read(8)
    if len(start) < 8:
        raise Malformed("is too short to be a safetensors file")
    length = int.from_bytes(start, "little")
    if length > max_header_bytes:
        raise Malformed(f"claims a header of {length} bytes, more than {max_header_bytes}")
    if 8 + length > size:
        raise Malformed(f"claims a header of {length} bytes but has only {size} bytes (truncated?)")
    header = parse_object(file.read(length), max_bytes=max_header_bytes)
    _check_metadata(header.pop("__metadata__", {}))
    entries = [_entry(name, value, 8 + length, element_bytes) for name, value in header.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    _check_tiling(entries, 8 + length, size)
    return TensorFile(tuple(entries))


def read_floats(file: BinaryIO, entry: TensorEntry) -> Floats:
    """One tensor as float32, its shape kept. Raises Malformed on a short read."""
    return decode(_read(file, entry, entry.begin, entry.end), entry.dtype).reshape(entry.shape)


def read_blocks(file: BinaryIO, entry: TensorEntry) -> Iterator[Floats]:
    """One tensor's elements as float32, in order, at most BLOCK at once.

    Raises Malformed on a short read.
    """
    step = BLOCK * ELEMENT_BYTES[entry.dtype]
    for begin in range(entry.begin, entry.end, step):
        yield decode(_read(file, entry, begin, min(begin + step, entry.end)), entry.dtype)


def _read(file: BinaryIO, entry: TensorEntry, begin: int, end: int) -> bytes:
    file.seek(begin)  # another tensor may have been read since
    raw = file.read(end - begin)
    if len(raw) != end - begin:
        raise Malformed(f"ends inside the tensor {entry.name[:120]!r} (truncated?)")
    return raw


def decode(raw: bytes, dtype: str) -> Floats:
    """Bytes of F32, F16 or BF16 elements as float32."""
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, "<f4" if dtype == "F32" else "<f2").astype(np.float32)


def encode_bf16(values: Numbers) -> bytes:
    """Finite numbers as bf16 bytes, rounded to nearest, ties to even.

    Raises Malformed where a value is beyond bf16's range.
    """
    with np.errstate(over="ignore"):  # what overflows is found, and refused, just below
        bits = values.astype(np.float32).view(np.uint32)
    if bits.size and (bits & 0x7FFFFFFF).max() >= _BEYOND_BF16:
        raise Malformed("holds values beyond the range of bf16")
    odd = (bits >> 16) & 1
    odd += bits
    odd += 0x7FFF
    odd >>= 16
    return odd.astype("<u2").tobytes()


def header_bytes(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """Length and header of a file of these tensors (name → dtype, shape), in that order.

    Deterministic: no metadata, no optional space but the padding to 8 bytes.
    """
    header: dict[str, Any] = {}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        end = offset + math.prod(shape) * ELEMENT_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _check_metadata(metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise Malformed("has a __metadata__ that is not a table of strings")


def _entry(name: str, value: Any, data: int, element_bytes: Mapping[str, int]) -> TensorEntry:
    what = f"the tensor {name[:120]!r}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise Malformed(f"describes {what} with other fields than dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in element_bytes:
        raise Malformed(f"has {what} in {str(dtype)[:20]}; save it as {_listed(element_bytes)}")
    if not _whole_numbers(shape) or len(shape) > MAX_DIMENSIONS:
        raise Malformed(f"gives {what} a shape that is no list of sizes")
    if not _whole_numbers(offsets) or len(offsets) != 2:
        raise Malformed(f"gives {what} data offsets that are not two positions")
    begin, end = offsets
    # Python's integers do not wrap, so a product of absurd sizes is just a mismatch.
    if end - begin != math.prod(shape) * element_bytes[dtype]:
        raise Malformed(f"gives {what} {end - begin} bytes, which its shape and type do not fill")
    return TensorEntry(name, dtype, tuple(shape), data + begin, data + end)


def _check_tiling(entries: list[TensorEntry], data: int, size: int) -> None:
    """Tensors must follow one another without holes or overlaps to the end of the file."""
    position = data
    for entry in entries:
        if entry.end > size:
            raise Malformed(f"ends before the tensor {entry.name[:120]!r} does (truncated?)")
        if entry.begin != position:
            raise Malformed(f"has an overlap or a hole before the tensor {entry.name[:120]!r}")
        position = entry.end
    if position != size:
        raise Malformed(f"has {size - position} bytes after its last tensor")


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _listed(names: Mapping[str, int]) -> str:
    return ", ".join(sorted(names))
