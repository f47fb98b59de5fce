"""The two sides of `training.py`: one model, one batch and one set of settings for all trainers.

Owns shapes with random weights, and how each side's trainer is made from them. Refuses measuring.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainerCallback, set_seed

from training.config import BAPOConfig
from training.encoding import EncodedPair, Tokens
from training.trainer import BAPOTrainer

STEPS = 8
DROPPED = 3
"""Of a round's steps: the first ones find cold caches and make the optimiser."""

OURS = "BAPO, ours"
OURS_DPO = "DPO, ours"
TRL_DPO = "DPO, TRL"
TRL_BAPO = "BAPO on TRL, references first"
TRL_PLAIN = "BAPO on TRL, references in each step"


@dataclass(frozen=True)
class Shape:
    """A model with random weights, and the batch it is trained on."""

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    pairs: int
    length: int
    """Tokens of a prompt with one answer; half of them are the prompt."""

    def network(self, device: str) -> Any:
        """fp32 on a CPU, bf16 on a GPU, as `load_base` has it."""
        sizes = asdict(self)
        for name in ("architecture", "pairs", "length"):
            del sizes[name]
        set_seed(0)
        settings = AutoConfig.for_model(self.architecture, tie_word_embeddings=True, **sizes)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        network = AutoModelForCausalLM.from_config(settings, attn_implementation="sdpa")
        return network.to(device, dtype).requires_grad_(False)

    def batches(self, count: int, *, anchored: bool) -> list[EncodedPair]:
        """Pairs of random tokens for so many steps."""
        draw = random.Random(0)

        def tokens(length: int) -> Tokens:
            return tuple(draw.randrange(2, self.vocab_size) for _ in range(length))

        def answer() -> Tokens:
            return (*tokens(self.length - self.length // 2 - 1), 1)

        made = []
        for _ in range(count * self.pairs):
            pair, base = EncodedPair(tokens(self.length // 2), answer(), answer()), answer()
            made.append(pair.anchored_on([base]) if anchored else pair)
        return made


SMALL = Shape("llama", 256, 704, 4, 4, 4, 4096, pairs=8, length=128)
HALF_BILLION = Shape("qwen2", 896, 4864, 24, 14, 2, 151_936, pairs=8, length=512)
TINY = Shape("llama", 32, 64, 1, 2, 2, 64, pairs=2, length=16)


class Clock(TrainerCallback):  # type: ignore[misc]
    """When each optimiser step ended; what lies between is a step with its data loading."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.ends.clear()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def seconds_a_step(self) -> float:
        """The median over the steps behind the dropped ones."""
        ends = self.ends[DROPPED - 1 :]
        return statistics.median(b - a for a, b in pairwise(ends))


def our_trainer(
    model: Any, config: BAPOConfig, pairs: Sequence[EncodedPair], callbacks: list[TrainerCallback]
) -> Trainer:
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=int(config.lora_alpha),
        target_modules=config.lora_target_modules,
    )
    return BAPOTrainer(get_peft_model(model, lora), config, pairs, callbacks=callbacks)


def trl_trainer(*arguments: Any, **options: Any) -> Trainer:
    # Our own process in the memory part is not to carry TRL.
    from benchmarks.trl_bapo import trl_trainer as build

    return build(*arguments, **options)


SIDES: dict[str, tuple[Callable[..., Trainer], bool]] = {
    OURS: (our_trainer, True),
    OURS_DPO: (our_trainer, False),
    TRL_DPO: (partial(trl_trainer, precompute=True), False),
    TRL_BAPO: (partial(trl_trainer, precompute=True), True),
    TRL_PLAIN: (partial(trl_trainer, precompute=False), True),
}


def trainer_of(side: str, shape: Shape, device: str, clock: Clock, folder: str) -> Trainer:
    """A trainer that is ready: adapter on, references computed."""
    make, anchored = SIDES[side]
    config = BAPOConfig(
        method="bapo" if anchored else "dpo",
        output_dir=folder,
        max_steps=STEPS,
        per_device_train_batch_size=shape.pairs,
        bf16=device == "cuda",
        use_cpu=device == "cpu",
    )
    pairs = shape.batches(STEPS, anchored=anchored)
    return make(shape.network(device), config, pairs, [clock])
