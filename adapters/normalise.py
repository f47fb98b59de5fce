"""The form in which an adapter is served: one way to write it, so equal adapters are equal bytes.

Owns the rewriting: scaling folded into B (alpha == r afterwards, no rsLoRA), bf16, PEFT's own keys
in order, a minimal config. Expects a folder that passed `validation`. PEFT, TRL and vLLM load the
result as it is, and it answers as the original within bf16 rounding.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from adapters.artifact import CONFIG_FILE, WEIGHTS_FILE
from adapters.errors import InvalidAdapter
from adapters.files import as_store_error, open_regular, sync_folder, write_durably
from adapters.lora_config import read_config, settings_of
from adapters.lora_tensors import LoraKey, by_key
from adapters.pace import give_way
from adapters.strictjson import Malformed
from adapters.tensorfile import (
    Floats,
    Numbers,
    TensorEntry,
    encode_bf16,
    header_bytes,
    read_blocks,
    read_header,
)


def normalise(source: Path, target: Path) -> None:
    """Write the served form of the adapter in `source` to the new folder `target`.

    Raises InvalidAdapter where scaled values leave bf16's range, StoreError where the disk fails.
    """
    settings = settings_of(read_config(source))
    try:
        target.mkdir(parents=True)
    except OSError as error:
        raise as_store_error(error, target) from error
    try:
        file, size = open_regular(source / WEIGHTS_FILE)
        with file:
            found, problems = by_key(read_header(file, size))
            if problems:
                raise InvalidAdapter(problems)
            tensors = dict(sorted(found.items(), key=lambda item: item[0].name))
            write_durably(target / WEIGHTS_FILE, _weights(file, tensors, settings.scale))
    except Malformed as error:
        raise InvalidAdapter([f"{WEIGHTS_FILE} {error}"]) from None
    write_durably(target / CONFIG_FILE, [_config(settings.rank, {key.module for key in tensors})])
    try:
        sync_folder(target)
    except OSError as error:
        raise as_store_error(error, target) from error


def _config(rank: int, modules: set[str]) -> bytes:
    served = {
        "base_model_name_or_path": None,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        # Full names: a suffix could match layers that the adapter does not have.
        "target_modules": sorted(modules),
        "task_type": "CAUSAL_LM",
    }
    return (json.dumps(served, indent=2, sort_keys=True) + "\n").encode()


def _weights(
    file: BinaryIO, tensors: Mapping[LoraKey, TensorEntry], scale: float
) -> Iterator[bytes]:
    """The new file's bytes, one block of one tensor at a time."""
    yield header_bytes({key.name: ("BF16", entry.shape) for key, entry in tensors.items()})
    for key, entry in tensors.items():
        factor = scale if key.side == "B" else 1.0
        for values in read_blocks(file, entry):
            yield encode_bf16(scaled(values, factor) + 0.0)  # minus zero is zero
            give_way()


def scaled(values: Floats, factor: float) -> Numbers:
    """The products, as double precision has them; what overflows `encode_bf16` refuses."""
    with np.errstate(over="ignore", invalid="ignore"):
        # The product of two float32 numbers fits a double: rounded to float32, it is the same.
        if float(np.float32(factor)) == factor:
            return values * np.float32(factor)
        # A large alpha on small values must not overflow on the way.
        return values.astype(np.float64) * factor
