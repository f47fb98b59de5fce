"""Adapters are read in a thread of the worker, which stands here for a slow disk, then copied."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from threadpoolctl import threadpool_info

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, when vLLM imports it
    from vllm.lora.request import LoRARequest

    from server.engine import worker as worker_module
    from server.engine.pages import await_disk, into_memory
    from server.engine.worker import AdapterStaging, Staging


class SlowDisk:
    """In place of vLLM's loading: reads until it is let go, or fails."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.reads: list[int] = []
        self.threads: set[int] = set()

    def __call__(self, request: LoRARequest) -> Any:
        self.reads.append(request.lora_int_id)
        self.threads.add(threading.get_ident())
        assert self.go.wait(10)
        if "broken" in request.lora_path:
            raise OSError("a bad disk")
        return f"adapter {request.lora_int_id}"


def nothing(_: Any) -> Iterator[None]:
    """Of what these disks give, there is nothing to copy."""
    return iter(())


def ready(staging: Staging, engine_id: int) -> bool:
    deadline = time.monotonic() + 10
    while staging.advance(engine_id) != "ready":
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return True


def test_reading_holds_up_nobody_and_is_done_once() -> None:
    disk = SlowDisk()
    staging = Staging(disk, nothing)
    request = LoRARequest("a@1", 1, "somewhere")
    staging.begin(request)
    staging.begin(request)
    assert staging.advance(1) == "reading"  # and we are here, while the disk is at it
    disk.go.set()
    assert ready(staging, 1)
    assert staging.take(request) == "adapter 1"
    assert disk.reads == [1]
    assert threading.get_ident() not in disk.threads
    # What was taken is forgotten here; whoever asks again reads it himself.
    assert staging.take(request) == "adapter 1"
    assert disk.reads == [1, 1]


def test_a_read_that_fails_says_so_once_and_can_be_tried_again() -> None:
    disk = SlowDisk()
    disk.go.set()
    staging = Staging(disk, nothing)
    staging.begin(LoRARequest("a@1", 1, "broken"))
    with pytest.raises(OSError, match="a bad disk"):
        ready(staging, 1)
    staging.begin(LoRARequest("a@1", 1, str(Path("mended"))))
    assert ready(staging, 1)


def mapped(file: Path, matrices: int = 2) -> Any:
    """An adapter whose weights are the pages of a file, as vLLM reads it."""
    save_file({f"{n}": torch.ones(4, 8) for n in range(matrices)}, file)
    with safe_open(file, framework="pt") as pages:
        tensors = [pages.get_tensor(f"{n}") for n in range(matrices)]
    pairs = zip(tensors[::2], tensors[1::2], strict=True)
    weights = [SimpleNamespace(lora_a=a, lora_b=b) for a, b in pairs]
    return SimpleNamespace(loras=dict(enumerate(weights)))


def matrices_of(adapter: Any) -> list[torch.Tensor]:
    return [m for weights in adapter.loras.values() for m in (weights.lora_a, weights.lora_b)]


@pytest.mark.parametrize("staged", [True, False])
def test_what_is_served_is_what_was_read_whatever_becomes_of_the_file(
    tmp_path: Path, staged: bool
) -> None:
    """vLLM only maps the file, whose pages would be read at each time an adapter gets a slot."""
    file = tmp_path / "adapter_model.safetensors"
    adapter = mapped(file)
    pages = matrices_of(adapter)
    staging = Staging(lambda _: adapter, into_memory)
    request = LoRARequest("a@1", 1, str(tmp_path))
    if staged:
        staging.begin(request)
        assert ready(staging, 1)
    taken = matrices_of(staging.take(request))
    with file.open("r+b") as disk:
        disk.seek(-256, 2)
        disk.write(bytes(256))
    assert not all(page.all() for page in pages)  # or the test shows nothing
    assert all(matrix.all() for matrix in taken)


def test_a_large_adapter_is_copied_in_pieces_and_the_rest_when_it_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step waits for more than a piece; here each matrix is one."""
    monkeypatch.setattr(worker_module, "PIECE_SECONDS", 0.0)
    adapter = mapped(tmp_path / "adapter_model.safetensors", 6)
    staging = Staging(lambda _: adapter, into_memory)
    request = LoRARequest("a@1", 1, str(tmp_path))
    before = matrices_of(adapter)

    def copied() -> int:
        return sum(a is not b for a, b in zip(matrices_of(adapter), before, strict=True))

    staging.begin(request)
    assert staging.advance(1, 10) == "copying"
    assert copied() == 1
    assert staging.advance(1) == "copying"
    assert copied() == 2
    staging.take(request)
    assert copied() == 6
    staging.begin(request)
    told = [staging.advance(1, 10) for _ in range(8)]
    assert told == ["copying"] * 6 + ["ready"] * 2


def test_the_disk_is_awaited_before_anything_is_mapped(tmp_path: Path) -> None:
    """Every page is there afterwards, and what is no adapter is left to vLLM to refuse."""
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(bytes(1_000_000))
    with file.open("rb") as pages:
        os.fsync(pages.fileno())
        os.posix_fadvise(pages.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        await_disk(tmp_path)
        for offset in range(0, 1_000_000, 4096):  # EAGAIN is raised for what is not in the cache
            os.preadv(pages.fileno(), [bytearray(1)], offset, os.RWF_NOWAIT)
    await_disk(tmp_path / "nothing")


def test_a_quick_read_is_awaited_and_a_slow_one_is_not() -> None:
    disk = SlowDisk()
    staging = Staging(disk, nothing)
    staging.begin(LoRARequest("a@1", 1, "somewhere"))
    assert staging.advance(1, 0.001) == "reading"
    threading.Timer(0.01, disk.go.set).start()
    assert staging.advance(1, 10) == "ready"


def test_what_is_dropped_is_gone_wherever_it_is() -> None:
    disk = SlowDisk()
    staging = Staging(disk, nothing)
    for engine_id in range(1, 9):  # more than there are readers
        staging.begin(LoRARequest(f"a@{engine_id}", engine_id, "somewhere"))
        staging.drop(engine_id)
    staging.drop(99)
    disk.go.set()
    with pytest.raises(KeyError):
        staging.advance(1)
    assert len(disk.reads) < 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_a_single_nan_in_memory_is_found(dtype: torch.dtype, poison: float) -> None:
    worker = AdapterStaging()
    layers = [torch.full((2, 3, 5), -1e4, dtype=dtype), torch.zeros(7, dtype=torch.uint8)]
    worker.model_runner = SimpleNamespace(kv_caches=[*layers, [torch.zeros(2)]])
    assert worker.memory_layers() == 3
    assert all(worker.layer_is_finite(layer) for layer in range(4))
    layers[0][1, 2, 3] = poison
    assert [worker.layer_is_finite(layer) for layer in range(4)] == [False, True, True, True]


def test_a_reader_has_no_threads_beside_its_own() -> None:
    """They would wait by spinning, on the cores of the steps."""

    def threads(_: Any) -> Any:
        torch.ones(1_000_000).add_(1)  # large enough for more than one
        openmp = [one for one in threadpool_info() if one["user_api"] == "openmp"]
        return [one["num_threads"] for one in openmp]

    before = torch.get_num_threads()
    torch.set_num_threads(2)  # what vLLM does, and every thread takes over from there
    try:
        staging = Staging(threads, nothing)
        staging.begin(LoRARequest("one", 1, "/nowhere"))
        of_reader: Any = staging.take(LoRARequest("one", 1, "/nowhere"))
        assert set(of_reader) == {1}
        assert 2 in threads(None)  # of torch's OpenMP; another library may bring one
    finally:
        torch.set_num_threads(before)
