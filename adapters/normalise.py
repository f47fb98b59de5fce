"""The form in which an adapter is served: one way to write it, so equal adapters are equal bytes.

Owns the rewriting: scaling folded into B (alpha == r afterwards, no rsLoRA), bf16, keys in order, a
minimal config. Expects a folder that passed `validation`. PEFT, TRL and vLLM load the result as it
is, and it answers as the original within bf16 rounding.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from adapters.artifact import CONFIG_FILE, WEIGHTS_FILE
from adapters.errors import InvalidAdapter
from adapters.files import as_store_error, open_regular, sync_folder, write_durably
from adapters.lora_config import read_settings
from adapters.strictjson import Malformed
from adapters.tensorfile import TensorEntry, encode_bf16, header_bytes, read_floats, read_header
from adapters.validation import module_and_side


def normalise(source: Path, target: Path) -> None:
    """Write the served form of the adapter in `source` to the new folder `target`.

    Raises InvalidAdapter where scaled values leave bf16's range, StoreError where the disk fails.
    """
    settings = read_settings(source)
    try:
        target.mkdir(parents=True)
    except OSError as error:
        raise as_store_error(error, target) from error
    try:
        file, size = open_regular(source / WEIGHTS_FILE)
        with file:
            entries = sorted(read_header(file, size), key=lambda entry: entry.name)
            write_durably(target / WEIGHTS_FILE, _weights(file, entries, settings.scale))
    except Malformed as error:
        raise InvalidAdapter([f"{WEIGHTS_FILE} {error}"]) from None
    modules = {module_and_side(entry.name)[0] for entry in entries}
    served = {
        "base_model_name_or_path": None,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": settings.rank,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": settings.rank,
        # Full names: a suffix could match layers that the adapter does not have.
        "target_modules": sorted(modules),
        "task_type": "CAUSAL_LM",
    }
    text = json.dumps(served, indent=2, sort_keys=True) + "\n"
    write_durably(target / CONFIG_FILE, [text.encode()])
    sync_folder(target)


def _weights(file: BinaryIO, entries: list[TensorEntry], scale: float) -> Iterator[bytes]:
    """The new file's bytes, one tensor at a time."""
    yield header_bytes({entry.name: ("BF16", entry.shape) for entry in entries})
    for entry in entries:
        values = read_floats(file, entry)
        is_b = module_and_side(entry.name)[1] == "B"
        # In double precision: a large alpha on small values must not overflow on the way.
        yield encode_bf16(values.astype(np.float64) * scale if is_b else values)
