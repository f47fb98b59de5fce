"""Which base model this is, told from its folder without loading it.

Owns a base model's identity: its fingerprint, the linear layers an adapter may change and
how large their weights are. Refuses loading, torch, and downloads. Two folders have the same
fingerprint exactly when config, tokenizer, and every tensor's name, shape, type and sampled
bytes agree, so a fine-tune of the same shape is another base.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from adapters.errors import BaseModelError
from adapters.packed import Seen, packed_layers
from adapters.strictjson import Malformed, parse_object
from adapters.tensorfile import ELEMENT_BYTES, TensorEntry, decode, read_header

__all__ = ["POCKET", "BaseModelError", "BaseModelInfo", "describe_base"]

POCKET = Path(__file__).resolve().parent.parent / "models" / "pocket"

# Written by tools at will; none changes what the model computes.
VOLATILE = {"transformers_version", "torch_dtype", "dtype", "use_cache"}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
EMBEDDINGS = {"lm_head", "embed_tokens", "wte", "wpe", "word_embeddings", "embed_in", "embed_out"}

# Enough to tell two sets of weights apart and to know a matrix's norm within a few per cent;
# 18 MB of reading for an 8B model where all of it would be 16 GB.
BLOCKS, BLOCK_BYTES = 16, 4096

ANY_ELEMENT_BYTES = ELEMENT_BYTES | {
    "F64": 8, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1,
    "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip
MAX_BASE_HEADER = 100 * 2**20
MAX_JSON = 64 * 2**20


class BaseModelInfo(BaseModel):
    """A base model's identity, as data that can be kept and sent."""

    model_config = ConfigDict(frozen=True)

    name: str
    fingerprint: str
    """`sha256:` and 64 hexadecimal digits."""
    modules: dict[str, tuple[int, int]]
    """Linear layers by name, e.g. `model.layers.0.mlp.up_proj` → (out_features, in_features)."""
    norms: dict[str, float] = {}
    """Estimated Frobenius norm of each layer's weight, where its type could be read."""


def describe_base(folder: Path, name: str | None = None) -> BaseModelInfo:
    """Describe the model in `folder`; `name` replaces the folder's own.

    Reads config.json, the tokenizer, and of the weights the safetensors headers and some
    sampled blocks. Raises BaseModelError, one sentence.
    """
    if not folder.is_dir():
        raise BaseModelError(f"There is no model folder {folder}.")
    config = _config(folder)
    tensors = _tensors(folder)
    weights = hashlib.sha256()
    modules: dict[str, tuple[int, int]] = {}
    norms: dict[str, float] = {}
    packed = packed_layers({key: t.seen for key, t in tensors.items()}, config)
    for key in sorted(tensors):
        (entry, _), digest, norm = tensors[key]
        weights.update(f"{key} {entry.dtype} {list(entry.shape)}\n".encode())
        weights.update(digest)
        module = key.removesuffix(".weight")
        if module == key or module in packed or len(entry.shape) != 2:
            continue
        if _is_linear(module, entry.shape[0], config):
            modules[module] = (entry.shape[0], entry.shape[1])
            if norm is not None and math.isfinite(norm):  # against NaN nothing is too large
                norms[module] = norm
    modules |= {m: shape for m, shape in packed.items() if _is_linear(m, shape[0], config)}
    parts = [_canonical(config), weights.hexdigest().encode(), _tokenizer_digest(folder)]
    fingerprint = "sha256:" + hashlib.sha256(b"\n".join(parts)).hexdigest()
    return BaseModelInfo(
        name=name or folder.resolve().name, fingerprint=fingerprint, modules=modules, norms=norms
    )


def _config(folder: Path) -> dict[str, Any]:
    try:
        return parse_object((folder / "config.json").read_bytes(), max_bytes=MAX_JSON)
    except FileNotFoundError:
        raise BaseModelError(f"{folder} is no model folder: it has no config.json.") from None
    except (OSError, Malformed) as error:
        raise BaseModelError(f"The config.json of {folder} {_clause(error)}.") from None


class _Tensor(NamedTuple):
    seen: Seen
    digest: bytes
    """Of the sampled bytes."""
    norm: float | None


def _tensors(folder: Path) -> dict[str, _Tensor]:
    """What is to be known of every tensor of the model, by its name."""
    found: dict[str, _Tensor] = {}
    for shard in _shards(folder):
        try:
            with shard.open("rb") as file:
                header = read_header(
                    file,
                    shard.stat().st_size,
                    element_bytes=ANY_ELEMENT_BYTES,
                    max_header_bytes=MAX_BASE_HEADER,
                )
                found.update((entry.name, _look_at(file, entry)) for entry in header)
        except (OSError, Malformed) as error:
            raise BaseModelError(f"{shard} {_clause(error)}: fetch the model again.") from None
    return found


def _look_at(file: BinaryIO, entry: TensorEntry) -> _Tensor:
    sample = _sample(file, entry)
    return _Tensor(
        Seen(entry, sample if len(sample) <= BLOCK_BYTES else b""),
        hashlib.sha256(sample).digest(),
        _norm(sample, entry) if entry.dtype in ELEMENT_BYTES and entry.elements else None,
    )


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        single = folder / "model.safetensors"
        if not single.is_file():
            raise BaseModelError(
                f"{folder} has no model.safetensors: save the model's weights as safetensors."
            )
        return [single]
    try:
        names = parse_object(index.read_bytes(), max_bytes=MAX_JSON)["weight_map"].values()
        return [folder / name for name in sorted(set(names))]
    except (OSError, Malformed) as error:
        raise BaseModelError(f"{index} {_clause(error)}: fetch the model again.") from None
    except (KeyError, AttributeError, TypeError):
        raise BaseModelError(f"{index} has no weight_map: fetch the model again.") from None


def _sample(file: BinaryIO, entry: TensorEntry) -> bytes:
    """Up to BLOCKS blocks of the tensor's bytes, evenly spread; all of a small one."""
    size = entry.end - entry.begin
    if size <= BLOCKS * BLOCK_BYTES:
        file.seek(entry.begin)
        return file.read(size)
    # Steps of whole 8 bytes, so that a block begins at an element.
    step = (size - BLOCK_BYTES) // (BLOCKS - 1) // 8 * 8
    blocks = []
    for number in range(BLOCKS):
        file.seek(entry.begin + number * step)
        blocks.append(file.read(BLOCK_BYTES))
    return b"".join(blocks)


def _norm(sample: bytes, entry: TensorEntry) -> float:
    """Frobenius norm of the whole tensor, from the mean square of its sample."""
    values = decode(sample, entry.dtype).astype(np.float64)
    return math.sqrt(float(np.mean(values * values)) * entry.elements)


def _is_linear(module: str, outputs: int, config: dict[str, Any]) -> bool:
    """Whether a weight matrix is neither an embedding nor the output head."""
    last = module.rpartition(".")[2]
    return last not in EMBEDDINGS and "norm" not in last and outputs != config.get("vocab_size")


def _canonical(config: dict[str, Any]) -> bytes:
    return json.dumps(_stable(config), sort_keys=True, separators=(",", ":")).encode()


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            k: _stable(v) for k, v in value.items() if k not in VOLATILE and not k.startswith("_")
        }
    return [_stable(item) for item in value] if isinstance(value, list) else value


def _tokenizer_digest(folder: Path) -> bytes:
    """Digest of the first kind of vocabulary found; a model without one has an empty one."""
    digest = hashlib.sha256()
    for name in TOKENIZER_FILES:
        path = folder / name
        if path.is_file():
            digest.update(path.read_bytes())
            if name != "vocab.json":  # it is half of a pair, the other half is merges.txt
                break
    return digest.hexdigest().encode()


def _clause(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror or error})"
    return str(error)
