"""Pairs a second through the real trainers, every side once in each round."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import Trainer

from benchmarks.figures import add_rows, ratios
from benchmarks.training_sides import (
    HALF_BILLION,
    OURS,
    OURS_DPO,
    SIDES,
    SMALL,
    TRL_BAPO,
    TRL_DPO,
    TRL_PLAIN,
    Clock,
    Shape,
    trainer_of,
)

STEP_RATIOS = {
    (OURS, TRL_DPO): "≥ 1.3",
    (OURS, TRL_BAPO): "≥ 2.0",
    (OURS, TRL_PLAIN): "",
    (OURS_DPO, TRL_DPO): "",
}
"""Whose pairs a second over whose; BAPO has three completions in a pair, DPO two."""


def step(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Pairs a second of each side, and ours over each of TRL's, round by round."""
    shape = HALF_BILLION if arguments.device == "cuda" else SMALL
    clock = Clock()
    speed: dict[str, list[float]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        trainers = {}
        for side in SIDES:
            with console.status(f"step: references of {side}"):
                trainers[side] = trainer_of(side, shape, arguments.device, clock, folder)
        for number in range(arguments.rounds):
            order = list(SIDES)[number % len(SIDES) :] + list(SIDES)[: number % len(SIDES)]
            for side in order:
                with console.status(f"step: round {number + 1} of {arguments.rounds}: {side}"):
                    trainers[side].train()
                speed[side].append(shape.pairs / clock.seconds_a_step())
        found: dict[str, Any] = {"shape": asdict(shape), "pairs a second": speed, "ratios": {}}
        table = Table("pairs a second", "min", "median", "max", "aim")
        add_rows(table, speed)
        for (above, below), aim in STEP_RATIOS.items():
            ratio = {f"{above} / {below}": ratios(speed[above], speed[below])}
            found["ratios"] |= ratio
            add_rows(table, ratio, aim=aim)
        if arguments.device == "cuda":
            found["use of the GPU"] = use_of_the_gpu(trainers, shape, speed, table)
    console.print(table)
    return found


def use_of_the_gpu(
    trainers: dict[str, Trainer], shape: Shape, speed: dict[str, list[float]], table: Table
) -> dict[str, Any]:
    """Tokens a second, and the share of what a large bf16 product reaches here and now."""
    peak = matmul_flops()
    found: dict[str, Any] = {"bf16 product of 8192, TFLOP/s": peak / 1e12}
    for side, trainer in trainers.items():
        prompt = shape.length // 2
        answer = shape.length - prompt
        answers = 3 if SIDES[side][1] else 2
        rows = prompt + answers * answer if side in (OURS, OURS_DPO) else answers * shape.length
        model = trainer.model.get_base_model()
        body = sum(
            weight.numel()
            for name, weight in model.get_decoder().named_parameters()
            if weight.dim() == 2 and "embed" not in name
        )
        head = model.get_output_embeddings().weight.numel()
        # Two operations forward and two for the gradient of the activations; frozen weights have
        # no gradient. Not counted: attention, the adapter's gradient, what a side computes twice.
        flops = 4 * (body * rows + head * answers * answer)
        median = statistics.median(speed[side])
        found[side] = {"tokens a second": rows * median, "share": flops * median / peak}
        table.add_row(f"{side}: tokens a second", "", f"{rows * median:,.0f}", "", "")
        table.add_row("… of the matmul peak", "", f"{flops * median / peak:.0%}", "", "")
    return found


def matmul_flops(size: int = 8192, repeats: int = 20) -> float:
    a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    best = float("inf")
    for _ in range(5):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(repeats):
            a @ a
        torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - began) / repeats)
    return 2 * size**3 / best
