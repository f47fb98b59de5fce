"""An adapter's bytes on their way from a file into memory of their own.

Owns waiting for the disk, and the copy. vLLM's reading only maps the file: what is in the file when
an adapter gets a slot, for the first or the tenth time, would be served, and not what was checked.
Refuses to know when the steps have time for it; that is `worker.py`'s.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

STRIDE = 64 * 1024
"""Bytes between two looks at a file that the disk is asked to bring."""


def await_disk(folder: Path) -> None:
    """Have the system bring the weights in `folder` into its cache: no step is to wait for it."""
    for file in folder.glob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            os.posix_fadvise(descriptor, 0, size, os.POSIX_FADV_WILLNEED)
            for offset in range(0, size, STRIDE):
                os.pread(descriptor, 1, offset)
        finally:
            os.close(descriptor)


def into_memory(adapter: Any) -> Iterator[None]:
    """Copy the weights of vLLM's `LoRAModel` out of a file's pages, one matrix at each step."""
    for weights in adapter.loras.values():
        weights.lora_a = _own(weights.lora_a)
        yield
        weights.lora_b = _own(weights.lora_b.t()).t()  # as slots have it, so that writing is quick
        yield


def _own(weights: torch.Tensor) -> torch.Tensor:
    if weights.is_pinned():  # was copied for it
        return weights
    return weights.clone(memory_format=torch.contiguous_format)
