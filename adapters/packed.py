"""How large a layer is whose weights are packed: four-bit and the like, several to an element.

Owns the layouts of bitsandbytes, GPTQ, AWQ and compressed-tensors, as far as they tell a layer's
true shape. Refuses to unpack weights. A layer in a layout that is not known here is left out, and
an adapter for it is refused.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from adapters.strictjson import Malformed, parse_object
from adapters.tensorfile import TensorEntry

Shape = tuple[int, int]

# Of one layer's tensors, the one that its layout is known by.
STATES = (".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4")
PACKED, SHAPE, QWEIGHT = ".weight_packed", ".weight_shape", ".qweight"
WORD_BITS = 32


class Seen(NamedTuple):
    """A tensor of a model; `content` is all of a small one's bytes, and empty for others."""

    entry: TensorEntry
    content: bytes


def packed_layers(tensors: Mapping[str, Seen], config: Mapping[str, Any]) -> dict[str, Shape]:
    """The true (out_features, in_features) of every layer whose weights are packed."""
    found: dict[str, Shape] = {}
    said = config.get("quantization_config")
    quantisation = said if isinstance(said, dict) else {}
    for name, seen in tensors.items():
        for suffix in (*STATES, PACKED, QWEIGHT):
            if name.endswith(suffix):
                layer = name.removesuffix(suffix)
                shape = _shape(suffix, layer, seen, tensors, quantisation)
                if shape is not None and min(shape) > 0:
                    found[layer] = shape
    return found


def _shape(
    suffix: str,
    layer: str,
    seen: Seen,
    tensors: Mapping[str, Seen],
    quantisation: Mapping[str, Any],
) -> Shape | None:
    if suffix in STATES:
        return _from_state(seen.content)
    if suffix == PACKED:
        given = tensors.get(f"{layer}{SHAPE}")
        return _from_integers(given.content) if given else None
    return _from_words(seen.entry, quantisation)


def _from_state(content: bytes) -> Shape | None:
    """bitsandbytes keeps a JSON object beside each weight."""
    try:
        shape = parse_object(content, max_bytes=len(content)).get("shape")
    except Malformed:
        return None
    if not isinstance(shape, list) or [type(size) for size in shape] != [int, int]:
        return None
    return shape[0], shape[1]


def _from_integers(content: bytes) -> Shape | None:
    """compressed-tensors keeps the two sizes as integers of 32 or 64 bits."""
    if len(content) not in (8, 16):
        return None
    half = len(content) // 2
    return int.from_bytes(content[:half], "little"), int.from_bytes(content[half:], "little")


def _from_words(entry: TensorEntry, quantisation: Mapping[str, Any]) -> Shape | None:
    """GPTQ packs several inputs into a word, (in / n, out); AWQ several outputs, (in, out / n)."""
    bits = quantisation.get("bits")
    if type(bits) is not int or bits < 1 or len(entry.shape) != 2:
        return None
    rows, columns = entry.shape
    method = quantisation.get("quant_method")
    if method == "gptq":
        return columns, rows * WORD_BITS // bits
    return (columns * WORD_BITS // bits, rows) if method == "awq" else None
