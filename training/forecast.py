"""What a run would do, before it does it: pairs, tokens, steps, memory and minutes.

Owns `--dry-run`. Time and memory are measured on two real steps, one of them with the
longest batch there can be, on an adapter that is thrown away. Refuses to write anything;
base answers that are not known yet are taken to be as long as they may become.
"""

import math
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.table import Table

from training.anchors import known_answers
from training.config import BAPOConfig
from training.data import PreferencePair, load_pairs
from training.encoding import EncodedPair, encode_pairs
from training.model import ResidentBase, load_base, trainable
from training.trainer import BAPOTrainer, collate_groups

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Forecast:
    """What one run would do."""

    pairs: int
    prompts: int
    tokens: int
    """Of one epoch, every prompt counted once a pair."""
    longest: int
    """Tokens of the longest pair with its answers."""
    answers_to_make: int
    steps: int
    seconds: float
    """Of the training itself; base answers come before it."""
    peak_bytes: int

    def as_table(self) -> Table:
        """For people; one row a figure."""
        table = Table("what would happen", "", show_header=False)
        table.add_row("pairs", f"{self.pairs}, with {self.prompts} prompts")
        table.add_row("tokens", f"{self.tokens} an epoch, the longest pair {self.longest}")
        table.add_row("base answers", f"{self.answers_to_make} still to be made")
        table.add_row("steps", str(self.steps))
        table.add_row("memory", f"about {math.ceil(self.peak_bytes / MEBIBYTE)} MiB at the longest")
        table.add_row("training", f"about {self.seconds / 60:.1f} minutes")
        return table


def forecast(
    model: ResidentBase | str | Path,
    pairs: Sequence[PreferencePair] | str | Path,
    config: BAPOConfig,
) -> Forecast:
    """Measure two steps and reckon the rest. Raises what `train_adapter` would for bad input."""
    data = load_pairs(pairs) if isinstance(pairs, str | Path) else list(pairs)
    base = (
        model
        if isinstance(model, ResidentBase)
        else load_base(model, cpu=config.use_cpu, four_bit=config.load_in_4bit)
    )
    encoded = encode_pairs(
        base.tokenizer,
        data,
        max_prompt_length=config.max_prompt_length,
        max_completion_length=config.max_completion_length,
    )
    missing = 0
    if config.anchored_on_base:
        unknown = (0,) * config.anchor_max_new_tokens
        found = known_answers(base, [pair.prompt for pair in encoded], config)
        missing = len({p.prompt for p, of in zip(encoded, found, strict=True) if None in of})
        encoded = [
            pair.anchored_on([answer or unknown for answer in of])
            for pair, of in zip(encoded, found, strict=True)
        ]
    elif config.anchored:
        encoded = [pair.anchored_on_chosen() for pair in encoded]
    lengths = sorted((len(pair) for pair in encoded), reverse=True)
    size = config.per_device_train_batch_size
    batches = math.ceil(len(encoded) / size)
    steps = math.ceil(batches / config.gradient_accumulation_steps) * config.num_train_epochs
    longest = sorted(encoded, key=len, reverse=True)[:size]
    usual = sorted(encoded, key=len)[len(encoded) // 2 :][:size]
    seconds, peak = _measure(base, config, longest, usual)
    return Forecast(
        pairs=len(encoded),
        prompts=len({pair.prompt for pair in encoded}),
        tokens=sum(lengths),
        longest=lengths[0],
        answers_to_make=missing * config.anchor_answers,
        steps=math.ceil(steps) if config.max_steps < 0 else config.max_steps,
        seconds=seconds * batches * config.num_train_epochs,
        peak_bytes=peak,
    )


def _measure(
    base: ResidentBase,
    config: BAPOConfig,
    longest: list[EncodedPair],
    usual: list[EncodedPair],
) -> tuple[float, int]:
    """Seconds of a usual batch, forward and backward, and the peak memory of the longest."""
    with trainable(base, config) as policy:
        trainer = BAPOTrainer(policy, config, [_referenced(pair) for pair in (*longest, *usual)])
        rows = list(trainer.train_dataset)
        _step(trainer, rows[: len(longest)])
        peak = _peak_bytes()
        began = time.perf_counter()
        _step(trainer, rows[len(longest) :])
        return time.perf_counter() - began, peak


def _step(trainer: BAPOTrainer, rows: list[tuple[EncodedPair, ...]]) -> None:
    batch = trainer._prepare_inputs(collate_groups(rows))
    loss = trainer.compute_loss(trainer.model.train(), batch)
    if isinstance(loss, torch.Tensor):
        loss.backward()
    trainer.model.zero_grad()


def _referenced(pair: EncodedPair) -> EncodedPair:
    return replace(pair, reference=(0.0,) * len(pair.branches))


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
