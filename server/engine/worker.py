"""What runs inside vLLM's worker: adapters are read in a thread, beside the steps that it computes.

Owns the way of an adapter from its folder into the worker's memory, and looking for NaN there. vLLM
reads an adapter between two steps, for which everybody's streams wait; here a thread of the worker
reads it first, and when vLLM asks for it, it is there; what is left is the copy into a slot.
That thread has no helpers: on a CPU they would wait by spinning on the cores of the steps.
vLLM's reading only maps the file: what is in the file when an adapter gets a slot, for the first or
the tenth time, would be served, and not what was checked. So the thread reads it into memory.
Refuses to choose: who is loaded and removed is the pool's to say.
Reached by `collective_rpc`; the class becomes a base of vLLM's worker (`--worker-extension-cls`),
so its names must not meet vLLM's. Written against vLLM 0.32.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from vllm.lora.lora_model import LoRAModel
from vllm.lora.request import LoRARequest

READERS = 2
"""Threads that read; more would only take the interpreter from the steps."""

QUICK_SECONDS = 0.005
"""So long a step may wait for a read that is about to end; asking once more takes a step."""

WITH_NAN = (torch.float32, torch.float16, torch.bfloat16)

Load = Callable[[LoRARequest], LoRAModel]


class Staging:
    """Adapters that are being read or wait to be taken, by their id."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._threads = ThreadPoolExecutor(
            READERS, thread_name_prefix="adapter-reader", initializer=_stay_aside
        )
        self._staged: dict[int, Future[LoRAModel]] = {}

    def begin(self, request: LoRARequest) -> None:
        """Start reading, unless it is being read already."""
        if request.lora_int_id not in self._staged:
            self._staged[request.lora_int_id] = self._threads.submit(self._load, request)

    def is_ready(self, engine_id: int, seconds: float = 0.0) -> bool:
        """Whether it is read after so long a wait. Raises what reading raised, and forgets it."""
        found = self._staged[engine_id]
        if not wait([found], seconds).done:
            return False
        if error := found.exception():
            del self._staged[engine_id]
            raise error
        return True

    def take(self, request: LoRARequest) -> LoRAModel:
        """In place of vLLM's own loading: what was read before; else it is read now."""
        found = self._staged.pop(request.lora_int_id, None)
        return found.result() if found else self._load(request)

    def drop(self, engine_id: int) -> None:
        """Forget what was read and not taken."""
        if found := self._staged.pop(engine_id, None):
            found.cancel()


def in_memory(adapter: LoRAModel) -> LoRAModel:
    """The adapter with weights in memory of its own, not in a file's pages."""
    for weights in adapter.loras.values():
        weights.lora_a, weights.lora_b = _own(weights.lora_a), _own(weights.lora_b)
    return adapter


def _own(weights: torch.Tensor) -> torch.Tensor:
    return weights if weights.is_pinned() else weights.clone()  # what is pinned was copied for it


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

    def stage_adapter(self, name: str, engine_id: int, folder: str) -> bool:
        """Begin reading the adapter in `folder`; whether that is done. Raises what it raised."""
        self._adapter_staging().begin(LoRARequest(name, engine_id, folder))
        return self._adapter_staging().is_ready(engine_id, QUICK_SECONDS)

    def adapter_is_staged(self, engine_id: int) -> bool:
        """Whether `stage_adapter` has come to its end. Raises what it raised."""
        return self._adapter_staging().is_ready(engine_id)

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
            load: Load = manager._load_adapter
            staging = manager.bapo_staging = Staging(lambda request: in_memory(load(request)))
            manager._load_adapter = staging.take
        return staging
