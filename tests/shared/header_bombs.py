"""Headers of safetensors files that cost far more to read than to send."""

from __future__ import annotations

KINDS = {
    "tables": b'"%07d":{},',
    "lists": b'"%07d":[[]],',
    "escapes": b'"%07d\\u0041\\u0041":1,',
    "tensors": b'"%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},',
}


def bomb(kind: str, size: int) -> bytes:
    """A file that is nothing but a header of some size, filled with one sort of thing."""
    unit = KINDS[kind]
    count = (size - 64) // len(unit % 0)
    text = b"{" + b"".join(unit % n for n in range(count)) + b'"z":0}'
    return len(text).to_bytes(8, "little") + text
