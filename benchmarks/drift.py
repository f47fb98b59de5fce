"""What does a drift from the base mean? Drift and facts kept, side by side, along training runs.

Owns the runs behind the bounds that docs/training.md recommends: the demo's three tastes by
plain DPO and by BAPO, looked at every few steps. Refuses conclusions.

    python -m benchmarks.drift [--every 8]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import TrainerCallback, set_seed

from adapters.base import POCKET
from benchmarks.figures import machine
from training.config import BAPOConfig
from training.data import load_pairs
from training.drift import drift, watched_answers
from training.evaluation.retention import Question, facts_kept, load_questions
from training.model import ResidentBase, load_base, trainable
from training.preparing import prepare
from training.trainer import BAPOTrainer

PREFERENCES = Path(__file__).resolve().parents[1] / "examples" / "preferences"
TASTES = ("pirate", "playful", "formal")
METHODS: dict[str, dict[str, Any]] = {
    "DPO": {"method": "dpo"},
    "BAPO hinge 0.02": {"anchor_weight": 0.02},
    "BAPO hinge 0.05": {"anchor_weight": 0.05},
}


class Look(TrainerCallback):  # type: ignore[misc]
    """Prints drift and facts kept every few steps, and what the look at drift took."""

    def __init__(self, name: str, every: int, answers: Any, base: ResidentBase) -> None:
        self.name, self.every, self.answers, self.base = name, every, answers, base
        self.questions: list[Question] = load_questions(POCKET / "facts.jsonl")

    def on_step_end(
        self, args: BAPOConfig, state: Any, control: Any, model: Any, **kwargs: Any
    ) -> None:
        if state.global_step % self.every:
            return
        began = time.perf_counter()
        found = drift(model, self.answers, bf16=bool(args.bf16))
        seconds = time.perf_counter() - began
        kept = facts_kept(model, self.base.tokenizer, self.questions).score
        cells = (self.name, state.global_step, f"{found:.4f}", kept, f"{1e3 * seconds:.0f} ms")
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=8, help="steps between two looks")
    parser.add_argument("--tastes", nargs="+", default=TASTES)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    arguments = parser.parse_args()
    base = load_base(POCKET, cpu=True)
    print(machine(), "| run | step | drift, nats a token | facts right | look |", sep="\n")
    print("| --- | --- | --- | --- | --- |")
    with TemporaryDirectory() as work:
        for taste in arguments.tastes:
            for method in arguments.methods:
                _run(base, taste, method, arguments.every, Path(work))


def _run(base: ResidentBase, taste: str, method: str, every: int, work: Path) -> None:
    config = BAPOConfig(
        learning_rate=1e-3,
        num_train_epochs=6,
        anchor_cache=str(work / "base-answers.jsonl"),
        output_dir=str(work / "trainer"),
        use_cpu=True,
        **METHODS[method],
    )
    ready = prepare(base, load_pairs(PREFERENCES / f"{taste}.jsonl"), config)
    began = time.perf_counter()
    answers = watched_answers(base, ready.pairs, config)
    print(f"answers to look at: {time.perf_counter() - began:.2f} s", flush=True)
    set_seed(config.seed)
    began = time.perf_counter()
    with trainable(base, config) as policy:
        look = Look(f"{taste}, {method}", every, answers, base)
        BAPOTrainer(policy, config, ready.pairs, callbacks=[look]).train()


if __name__ == "__main__":
    main()
