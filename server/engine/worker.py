"""What runs inside vLLM's worker: adapters come into its memory beside the steps that it computes.

Owns the way of an adapter from its folder into the worker's memory, and looking for NaN there. vLLM
reads an adapter between two steps, for which everybody's streams wait as long as that takes. Here a
thread of the worker waits for the disk and opens it. Copying it into memory is vLLM's, too, where
there is a GPU, in that thread; on a CPU `pages.py` does it, between the steps, some milliseconds at
a time. A thread that copies beside a step takes a core from it, and products of all cores wait for
the slowest some hundred times a step: 80 MB were seen to hold one up for 200 ms instead of 20.
When vLLM asks for the adapter, it is there; what is left is the copy into a slot.
Refuses to choose: who is loaded and removed is the pool's to say.
Reached by `collective_rpc`; the class becomes a base of vLLM's worker (`--worker-extension-cls`),
so its names must not meet vLLM's. Written against vLLM 0.32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from threadpoolctl import threadpool_limits
from vllm.lora.lora_model import LoRAModel
from vllm.lora.request import LoRARequest

from server.engine.pages import await_disk, into_memory

READERS = 2
"""Threads that read; more would only take the interpreter from the steps."""

QUICK_SECONDS = 0.005
"""So long a step may wait for a read that is about to end; asking once more takes a step."""
PIECE_SECONDS = 0.008
"""So long, about, a step may wait for a piece to be copied."""

WITH_NAN = (torch.float32, torch.float16, torch.bfloat16)

Load = Callable[[LoRARequest], LoRAModel]
Copy = Callable[[LoRAModel], Iterator[None]]
"""Makes an adapter's weights memory of its own, some of them at each step."""

Progress = Literal["reading", "copying", "ready"]


@dataclass
class _Arrival:
    """An adapter that is being read, and then copied."""

    reading: Future[LoRAModel]
    copying: Iterator[None] | None = None


class Staging:
    """Adapters that are on their way or wait to be taken, by their id."""

    def __init__(self, load: Load, copy: Copy) -> None:
        self._load = load
        self._copy = copy
        self._threads = ThreadPoolExecutor(
            READERS, thread_name_prefix="adapter-reader", initializer=_stay_aside
        )
        self._staged: dict[int, _Arrival] = {}

    def begin(self, request: LoRARequest) -> None:
        """Start reading, unless it is being read already."""
        if request.lora_int_id not in self._staged:
            reading = self._threads.submit(self._load, request)
            self._staged[request.lora_int_id] = _Arrival(reading)

    def advance(self, engine_id: int, patience: float = 0.0) -> Progress:
        """Copy a piece of what is read, after a wait for that; how far it is now.

        Raises what reading raised, and forgets it.
        """
        arrival = self._staged[engine_id]
        if not wait([arrival.reading], patience).done:
            return "reading"
        if error := arrival.reading.exception():
            del self._staged[engine_id]
            raise error
        if arrival.copying is None:
            arrival.copying = self._copy(arrival.reading.result())
        enough = time.monotonic() + PIECE_SECONDS
        for _ in arrival.copying:
            if time.monotonic() >= enough:
                return "copying"
        return "ready"

    def take(self, request: LoRARequest) -> LoRAModel:
        """In place of vLLM's own loading: what was staged before; what is missing is done now."""
        arrival = self._staged.pop(request.lora_int_id, None)
        adapter = arrival.reading.result() if arrival else self._load(request)
        for _ in (arrival and arrival.copying) or self._copy(adapter):
            pass
        return adapter

    def drop(self, engine_id: int) -> None:
        """Forget what was staged and not taken."""
        if arrival := self._staged.pop(engine_id, None):
            arrival.reading.cancel()


def _stay_aside() -> None:
    """Of the calling thread: no helpers of its own.

    OpenMP counts threads for each thread that calls it, so the steps keep theirs; torch's own
    setting would change the products of all.
    """
    torch.get_num_threads()  # what torch does at a thread's first use would undo it
    threadpool_limits(1, user_api="openmp")


class AdapterStaging:
    """The methods that vLLM's worker gains."""

    model_runner: Any
    remove_lora: Callable[[int], bool]

    def stage_adapter(self, name: str, engine_id: int, folder: str) -> Progress:
        """Begin to bring the adapter in `folder` into memory; how far that is. Raises its errors.

        Until it is ready it goes on only by calls of `go_on_staging`.
        """
        self._adapter_staging().begin(LoRARequest(name, engine_id, folder))
        return self._adapter_staging().advance(engine_id, QUICK_SECONDS)

    def go_on_staging(self, engine_id: int) -> Progress:
        """Do a piece of what `stage_adapter` began; how far it is. Raises its errors."""
        return self._adapter_staging().advance(engine_id)

    def forget_adapter(self, engine_id: int) -> None:
        """Free its memory and its slot, wherever it is on the way."""
        self._adapter_staging().drop(engine_id)
        self.remove_lora(engine_id)

    def resident_adapters(self) -> dict[str, list[int]]:
        """Ids in host memory, and of those the ones in a slot."""
        manager = self.model_runner.lora_manager._adapter_manager
        return {
            "host": sorted(manager.list_adapters()),
            "slots": [engine_id for engine_id in manager.lora_index_to_id if engine_id],
        }

    def memory_layers(self) -> int:
        """Layers that keep keys and values here."""
        return len(self.model_runner.kv_caches)

    def layer_is_finite(self, layer: int) -> bool:
        """Whether no key or value of a layer is NaN or infinite; True for what cannot be.

        What one request left there, another's attention reads before it is overwritten, as
        something times zero: and NaN times zero is NaN.
        """
        if layer >= self.memory_layers():
            return True  # another worker's
        kept = self.model_runner.kv_caches[layer]
        if not isinstance(kept, torch.Tensor) or kept.dtype not in WITH_NAN:
            return True
        smallest, largest = torch.aminmax(kept)  # one pass, and NaN is both of them
        return bool(smallest.isfinite() and largest.isfinite())

    def _adapter_staging(self) -> Staging:
        """Made at the first use: vLLM's worker has no constructor to hook into."""
        manager = self.model_runner.lora_manager
        staging: Staging | None = getattr(manager, "bapo_staging", None)
        if staging is None:
            vllms: Load = manager._load_adapter

            def load(request: LoRARequest) -> LoRAModel:
                await_disk(Path(request.lora_path))
                return vllms(request)

            staging = manager.bapo_staging = Staging(load, into_memory)
            manager._load_adapter = staging.take
        return staging
