"""One run of the forgetting benchmark: train, and measure along the way.

Owns what is measured and how a record looks. A measurement is a greedy, gradient-free pass, so the
run goes on as if it had not been looked at (a test holds it to the bit). Outcomes are kept item by
item, for paired intervals. Refuses the grid and what follows from the figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, set_seed

from benchmarks.forgetting_data import SIDES, HeldOut, Side, Taste, World
from benchmarks.forgetting_grid import STEPS, Run
from training.config import BAPOConfig
from training.encoding import encode_pairs
from training.errors import DivergedError
from training.evaluation.retention import answer_texts, facts_kept
from training.model import ResidentBase, trainable
from training.preparing import Prepared, prepare
from training.scoring import score_pairs
from training.trainer import BAPOTrainer

Record = dict[str, Any]
WARM_UP = 10


def packed(outcomes: Iterable[bool]) -> str:
    """Outcomes in their order as one hexadecimal number behind a leading 1."""
    return f"{int('1' + ''.join('01'[outcome] for outcome in outcomes), 2):x}"


def unpacked(text: str) -> list[bool]:
    """The outcomes again."""
    return [digit == "1" for digit in f"{int(text, 16):b}"[1:]]


@dataclass(frozen=True)
class Bench:
    """The base in memory, the world it is asked about, the folder of what is kept, when to look."""

    base: ResidentBase
    world: World
    work: Path
    steps: tuple[int, ...] = STEPS

    def config(self, run: Run) -> BAPOConfig:
        """The run's settings; `general` in a method stands for the general prompts' file."""
        settings = dict(run.method.settings)
        if settings.pop("general", False):
            settings["anchor_prompts"] = str(self.work / "general.jsonl")
        return BAPOConfig(
            learning_rate=run.learning_rate,
            seed=run.seed,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=WARM_UP,
            max_steps=self.steps[-1],
            anchor_cache=str(self.work / "base-answers.jsonl"),
            output_dir=str(self.work / "trainer"),
            use_cpu=True,
            **settings,
        )


def train_and_measure(bench: Bench, run: Run) -> Record:
    """Train the run's adapter and measure it; a diverged run has the points until then."""
    began, spent = time.process_time(), 0.0
    taste = bench.world.tastes[run.taste]
    config = bench.config(run)
    ready = prepare(bench.base, list(taste.train), config)
    measure = Measurement(bench, taste)
    points: list[Record] = []
    diverged = False
    set_seed(config.seed)
    with trainable(bench.base, config) as policy:

        def look(step: int) -> None:
            nonlocal spent
            start = time.process_time()
            points.append({"step": step, **measure(policy)})
            spent += time.process_time() - start

        trainer = BAPOTrainer(
            policy,
            config,
            ready.pairs,
            general=ready.general,
            callbacks=[Looking(bench.steps, look)],
        )
        try:
            trainer.train()
        except DivergedError:
            diverged = True
    total = time.process_time() - began
    cost = {"training": round(total - spent, 2), "measuring": round(spent, 2)}
    return {"points": points, "diverged": diverged, "cpu seconds": cost}


def measure_base(bench: Bench, run: Run) -> Record:
    """The base's own figures, and how likely it finds each side's voice, in nats a token."""
    taste = bench.world.tastes[run.taste]
    ready = prepare(bench.base, list(taste.train), bench.config(run))
    return {
        "points": [{"step": 0, **Measurement(bench, taste)(bench.base.model)}],
        "voice": voice(ready),
    }


def voice(ready: Prepared) -> dict[str, float]:
    """Mean log-probability a token under the base of chosen, rejected and its own answers."""
    branches = dict(enumerate(("chosen", "rejected", "base")))
    return {
        name: sum((p.reference or ())[n] / len(p.branches[n] or ()) for p in ready.pairs)
        / len(ready.pairs)
        for n, name in branches.items()
    }


class Looking(TrainerCallback):  # type: ignore[misc]
    """Calls `look` with each of `steps` when it is done."""

    def __init__(self, steps: tuple[int, ...], look: Callable[[int], None]) -> None:
        self.steps = steps
        self.look = look

    def on_step_end(
        self, args: BAPOConfig, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step in self.steps:
            self.look(state.global_step)


class Measurement:
    """The figures of a model on one taste's held-out pairs and on everybody's questions.

    For each side `facts`, the questions answered right; for the pairs, and for the familiar ones
    where there are any, `likelihood` (chosen more likely than rejected), `margin` (chosen gained
    more than rejected against the base) and `gain` (mean log-ratio of each); for the familiar ones
    `style`, too (the greedy answer is the chosen one to the letter).
    """

    def __init__(self, bench: Bench, taste: Taste) -> None:
        self.bench = bench
        self.taste = taste
        self.pairs = {
            (side, kind): encode_pairs(bench.base.tokenizer, pairs)
            for side, held_out in taste.held_out.items()
            for kind, pairs in (("pairs", held_out.pairs), ("familiar", held_out.familiar))
            if pairs
        }
        self.before = {at: score_pairs(bench.base.model, pairs) for at, pairs in self.pairs.items()}

    def __call__(self, model: Any) -> Record:
        return {side: self._of(model, side, self.taste.held_out[side]) for side in SIDES}

    def _of(self, model: Any, side: Side, held_out: HeldOut) -> Record:
        tokenizer = self.bench.base.tokenizer
        facts = facts_kept(model, tokenizer, self.bench.world.questions[side])
        found: Record = {"facts": packed(facts.right)}
        for kind in ("pairs", "familiar"):
            if (side, kind) in self.pairs:
                found[kind] = self._preferences(model, (side, kind))
        if held_out.familiar:
            asked = [str(pair.prompt) for pair in held_out.familiar]
            texts = answer_texts(model, tokenizer, asked, max_new_tokens=64)
            found["familiar"]["style"] = packed(
                text == pair.chosen.strip()
                for text, pair in zip(texts, held_out.familiar, strict=True)
            )
        return found

    def _preferences(self, model: Any, at: tuple[Side, str]) -> Record:
        scores = score_pairs(model, self.pairs[at])  # (n, 2)
        gain = scores - self.before[at]  # (n, 2)
        return {
            "likelihood": packed(_first_is_higher(scores)),
            "margin": packed(_first_is_higher(gain)),
            "gain": [round(nats, 3) for nats in gain.mean(0).tolist()],
        }


def _first_is_higher(scores: Tensor) -> list[bool]:
    return [bool(first > second) for first, second in scores.tolist()]
