"""The CPU products: rows without an adapter get nothing, the others what PEFT would give."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from server.engine import cpu_lora
from server.engine.cpu_lora import FEW, Batch, Stacks, add_lora

SLOTS, RANK, WIDTH = 5, 4, 6
SIZES = (10, 10, 3)  # outputs of the layer's parts, as q, k and v have them
LAYOUTS = {
    "one row each, in order": [0, 1, 2, 3, 4],
    "one row each, out of order": [3, 0, 4, 1, 2],
    "some without": [-1, 0, 2, -1, 1],
    "none": [-1] * 5,
    "all the same": [2] * 5,
    "some the same": [2, -1, 2, 2, -1],
    "many rows": [1, 1, 0, -1, 3, 1, 0, 0, 3, 4],
    "a long prompt beside single tokens": [*[4] * 40, 0, -1, 1, 0],
}


@pytest.fixture
def stacks() -> Stacks:
    return random_stacks(torch.float32)


def random_stacks(dtype: torch.dtype) -> Stacks:
    made = Stacks(SLOTS, RANK, WIDTH, SIZES, dtype)
    generator = torch.Generator().manual_seed(0)
    for part in (*made.parts_a, *made.parts_b):
        part.copy_(torch.randn(part.shape, generator=generator))
    for slot in range(SLOTS):
        made.was_written(slot)
    return made


@pytest.fixture(params=["our loop", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(cpu_lora, "FEW", FEW if request.param == "our loop" else 0)
    return str(request.param)


def peft(rows: torch.Tensor, stacks: Stacks, slots: list[int]) -> torch.Tensor:
    """What PEFT adds to each row, one row and one part at a time: a loop that cannot be wrong."""
    added = torch.zeros(len(rows), sum(SIZES))
    for i, slot in enumerate(slots):
        if slot >= 0:
            parts = zip(stacks.parts_a, stacks.parts_b, strict=True)
            added[i] = torch.cat(
                [b[slot, 0].float() @ (a[slot, 0].float() @ rows[i]) for a, b in parts]
            )
    return added


def with_lora(
    rows: torch.Tensor, before: torch.Tensor, stacks: Stacks, slots: list[int]
) -> torch.Tensor:
    output = before.clone()
    if batch := Batch.of(torch.tensor(slots)):
        add_lora(output, rows, stacks, batch)
    return output


@pytest.mark.parametrize("slots", LAYOUTS.values(), ids=LAYOUTS)
def test_each_row_gets_its_own_adapter_or_none(stacks: Stacks, slots: list[int], way: str) -> None:
    rows, before = torch.randn(len(slots), WIDTH), torch.randn(len(slots), sum(SIZES) + 2)
    after = with_lora(rows, before, stacks, slots)
    torch.testing.assert_close(
        after[:, : sum(SIZES)], before[:, : sum(SIZES)] + peft(rows, stacks, slots)
    )
    assert torch.equal(after[:, sum(SIZES) :], before[:, sum(SIZES) :])  # the model's padding
    untouched = torch.tensor(slots) < 0
    assert torch.equal(after[untouched], before[untouched])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("slots", LAYOUTS.values(), ids=LAYOUTS)
def test_a_models_type_is_kept(dtype: torch.dtype, slots: list[int], way: str) -> None:
    stacks = random_stacks(dtype)
    rows = torch.randn(len(slots), WIDTH).to(dtype)
    before = torch.randn(len(slots), sum(SIZES)).to(dtype)
    after = with_lora(rows, before, stacks, slots)
    assert after.dtype == dtype
    expected = before.float() + peft(rows.float(), stacks, slots)
    # torch rounds what A gives to bfloat16, too, as it does for PEFT.
    torch.testing.assert_close(after.float(), expected, rtol=2e-2, atol=6e-2)


@pytest.mark.parametrize("slots", LAYOUTS.values(), ids=LAYOUTS)
def test_nan_in_a_slot_stays_with_its_users(stacks: Stacks, slots: list[int], way: str) -> None:
    for part in (*stacks.parts_a, *stacks.parts_b):
        part[2] = float("nan")
    rows, before = torch.randn(len(slots), WIDTH), torch.zeros(len(slots), sum(SIZES))
    after = with_lora(rows, before, stacks, slots)
    poisoned = torch.tensor(slots) == 2
    assert after[poisoned].isnan().all()
    assert not after[~poisoned].isnan().any()


def test_the_loop_takes_slots_of_few_rows(stacks: Stacks, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[set[int]] = []
    add_rows = Stacks.add_rows

    def noted(*arguments: Any) -> None:
        taken.append(set(arguments[-1].tolist()))
        add_rows(*arguments)

    monkeypatch.setattr(Stacks, "add_rows", noted)
    many = FEW // (RANK * (len(SIZES) * WIDTH + sum(SIZES)))
    for slots in ([3], [2] * many, [2] * (many + 1), [*[2] * (many + 1), 1, 4, -1]):
        rows, before = torch.randn(len(slots), WIDTH), torch.zeros(len(slots), sum(SIZES))
        after = with_lora(rows, before, stacks, slots)
        torch.testing.assert_close(after[-4:], peft(rows[-4:], stacks, slots[-4:]))
    assert taken == [{3}, {2}, {1, 4}]
    across = torch.randn(WIDTH, 2).t()  # in memory as the loop does not read it
    with_lora(across, torch.zeros(2, sum(SIZES)), stacks, [2, 1])
    with_lora(torch.randn(2, WIDTH), torch.zeros(2, sum(SIZES)).bfloat16(), stacks, [2, 1])
    assert len(taken) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_the_same_whoever_else_is_in_the_step(dtype: torch.dtype) -> None:
    stacks = Stacks(SLOTS, 16, 200, (300, 70), dtype)
    for slot, rank in enumerate((16, 7, 1, 0, 12)):
        a = [torch.randn(rank, 200), torch.randn(rank, 200)]
        stacks.write(slot, a, [torch.randn(300, rank), torch.randn(70, rank)])
    rows, before = torch.randn(9, 200).to(dtype), torch.randn(9, 370).to(dtype)
    slots = [4, 0, 1, -1, 2, 0, 3, 1, 4]
    together = with_lora(rows, before, stacks, slots)
    for i, slot in enumerate(slots):
        alone = with_lora(rows[i : i + 1], before[i : i + 1], stacks, [slot])
        assert torch.equal(together[i : i + 1], alone)


def test_bfloat16_is_rounded_once_and_as_torch_does() -> None:
    """Also what lies between two numbers, is infinite or NaN."""
    one = Stacks(1, 1, 1, (1,), torch.bfloat16)
    one.write(0, [torch.ones(1, 1)], [torch.ones(1, 1)])
    patterns = torch.arange(0, 2**16, 7).to(torch.uint16).view(torch.bfloat16)
    inputs = patterns[torch.randperm(len(patterns))].view(-1, 1)
    outputs = patterns.view(-1, 1)
    after = with_lora(inputs, outputs, one, [0] * len(patterns))
    torch.testing.assert_close(
        after, (outputs.float() + inputs.float()).bfloat16(), rtol=0, atol=0, equal_nan=True
    )


COMPILE = """
import torch
from server.engine.cpu_kernel import compiled
compiled(torch.float32)
compiled(torch.bfloat16)
"""


def test_kept_code_that_was_cut_short_is_compiled_anew(tmp_path: Path) -> None:
    def start() -> str:
        done = subprocess.run(
            [sys.executable, "-c", COMPILE],
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    assert "not_kept" not in start()
    kept = [*tmp_path.rglob("*.nbi"), *tmp_path.rglob("*.nbc")]
    assert len(kept) == 3  # what there is, and the code for either type
    for file in kept:
        os.truncate(file, file.stat().st_size // 2)
    assert "compiled_code_not_kept" in start()


VLLM_STILL_WRONG = """
import torch
from vllm.lora.ops.torch_ops import bgmv_shrink
weights = torch.ones(2, 1, 4, 6)
output = torch.zeros(1, 4)
bgmv_shrink(torch.ones(1, 6), weights, output, torch.tensor([-1]))
assert output.any(), "vLLM gives index -1 nothing now"
from vllm.platforms import current_platform
from vllm.plugins import load_general_plugins
from vllm.utils.import_utils import resolve_obj_by_qualname
load_general_plugins()
wrapper = resolve_obj_by_qualname(current_platform.get_punica_wrapper())
assert wrapper.__module__ == "server.engine.cpu_punica", wrapper
from vllm.model_executor.layers.linear import ReplicatedLinear
from server.engine.cpu_punica import linear_modules
class Model(torch.nn.Module):
    embedding_modules = {"lm_head": "output_embeddings"}
    def __init__(self):
        super().__init__()
        self.o_proj = ReplicatedLinear.__new__(ReplicatedLinear)
        torch.nn.Module.__init__(self.o_proj)
assert linear_modules(Model()) == ["o_proj"], linear_modules(Model())
"""


def test_vllm_needs_the_correction_and_gets_it_as_a_plugin() -> None:
    """Its first part fails the day vLLM mends its products: then only the speed is left."""
    done = subprocess.run(
        [sys.executable, "-c", VLLM_STILL_WRONG], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_an_adapter_leaves_nothing_of_the_one_before_it_in_a_slot() -> None:
    stacks = Stacks(SLOTS, RANK, WIDTH, SIZES, torch.float32)
    generator = torch.Generator().manual_seed(0)

    def adapter(*ranks: int | None) -> tuple[list[torch.Tensor | None], ...]:
        """In bf16, as adapters are kept; a part of rank None is not adapted."""
        return tuple(
            [
                rank and torch.randn(shape(rank, size), generator=generator).bfloat16()
                for rank, size in zip(ranks, SIZES, strict=True)
            ]
            for shape in (lambda rank, _: (rank, WIDTH), lambda rank, size: (size, rank))
        )

    for ranks in ((4, 4, 4), (2, None, 4), (None, 3, 1), (4, 1, None), (None,) * 3, (1, 2, 3)):
        a, b = adapter(*ranks)
        assert stacks.fits(a, b)
        stacks.write(1, a, b)
        fresh = Stacks(SLOTS, RANK, WIDTH, SIZES, torch.float32)
        for part, (one, other) in enumerate(zip(a, b, strict=True)):
            if one is not None and other is not None:
                fresh.parts_a[part][1, 0, : len(one)] = one.float()
                fresh.parts_b[part][1, 0, :, : len(one)] = other.float()
        assert torch.equal(stacks.a, fresh.a)
        assert torch.equal(stacks.b, fresh.b)


def test_what_another_wrote_into_a_slot_is_zeroed_too() -> None:
    stacks = Stacks(SLOTS, RANK, WIDTH, SIZES, torch.float32)
    stacks.parts_a[0][1, 0] = stacks.parts_b[2][1, 0] = 1.0
    stacks.was_written(1)
    stacks.clear(1)
    assert not stacks.a.any()
    assert not stacks.b.any()


def test_a_write_that_fails_is_cleaned_up_by_the_next() -> None:
    stacks = Stacks(SLOTS, RANK, WIDTH, SIZES, torch.float32)
    whole = torch.ones(RANK, WIDTH)
    narrow = torch.ones(SIZES[0] - 1, RANK)
    assert not stacks.fits([whole, None, None], [narrow, None, None])
    with pytest.raises(RuntimeError):
        stacks.write(1, [whole, None, None], [narrow, None, None])
    stacks.clear(1)
    assert not stacks.a.any()
