"""What a run would do, before it does it: pairs, tokens, steps, memory and minutes.

Owns `--dry-run`. Time and memory are measured on two real steps, one of them with the
longest batch there can be, on an adapter that is thrown away; so are an evaluation's batch and a
look at the drift. Refuses to write anything; base answers that are not known yet are taken to be
as long as they may become.
"""

import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.table import Table

from training.anchors import known_answers
from training.config import BAPOConfig
from training.drift import drift, watched_prompts
from training.encoding import EncodedPair, Tokens
from training.model import ResidentBase, load_base, trainable
from training.preparing import Pairs, encode_all, pairs_of
from training.trainer import BAPOTrainer, Group, PairDataset, collate_groups

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Forecast:
    """What one run would do."""

    pairs: int
    prompts: int
    held_out: int
    """Pairs that are not trained on."""
    general: int
    """General prompts that are anchored, too."""
    tokens: int
    """Read in training in one epoch, every prompt counted once a pair, general ones with them."""
    longest: int
    """Tokens of the longest pair with its answers."""
    answers_to_make: int
    """Base answers that are not known yet: of anchors and of prompts watched for drift."""
    steps: int
    evaluations: int
    looks: int
    """At the drift."""
    seconds: float
    """Of training, evaluations and looks; base answers come before them."""
    peak_bytes: int

    def as_table(self) -> Table:
        """For people; one row a figure."""
        table = Table("what would happen", "", show_header=False)
        table.add_row("pairs", f"{self.pairs}, with {self.prompts} prompts")
        if self.general:
            table.add_row("general prompts", str(self.general))
        table.add_row("tokens", f"{self.tokens} an epoch, the longest pair {self.longest}")
        table.add_row("base answers", f"{self.answers_to_make} still to be made")
        table.add_row("steps", str(self.steps))
        if self.held_out:
            table.add_row("evaluations", f"{self.evaluations}, of {self.held_out} held-out pairs")
        if self.looks:
            table.add_row("looks at the drift", str(self.looks))
        table.add_row("memory", f"about {math.ceil(self.peak_bytes / MEBIBYTE)} MiB at the longest")
        table.add_row("training", f"about {self.seconds / 60:.1f} minutes")
        return table


def forecast(
    model: ResidentBase | str | Path, pairs: Pairs, config: BAPOConfig, *, eval_pairs: Pairs = ()
) -> Forecast:
    """Measure two steps and reckon the rest. Raises what `train_adapter` would for bad input."""
    data, held_out = pairs_of(pairs), pairs_of(eval_pairs)
    base = (
        model
        if isinstance(model, ResidentBase)
        else load_base(model, cpu=config.use_cpu, four_bit=config.load_in_4bit)
    )
    parts = encode_all(base, data, held_out, config)
    watched = watched_prompts(parts[1] or parts[0], config)
    answers_to_make = _answers_to_make(base, parts, watched, config)
    trained, evaluated, general = (_anchored(base, part, config) for part in parts)
    groups = list(PairDataset(trained, general, config.anchor_prompts_per_pair))
    groups.sort(key=_tokens, reverse=True)
    batches = math.ceil(len(groups) / config.per_device_train_batch_size)
    epoch = math.ceil(batches / config.gradient_accumulation_steps)
    steps = config.max_steps if config.max_steps > 0 else math.ceil(epoch * config.num_train_epochs)
    evaluations = _evaluations(config, steps, epoch) if evaluated else 0
    looks = math.ceil(steps / config.drift_steps) if watched else 0
    cost = _measure(base, config, groups, evaluated, watched)
    return Forecast(
        pairs=len(trained),
        prompts=len({pair.prompt for pair in trained}),
        held_out=len(evaluated),
        general=len(general),
        tokens=sum(map(_tokens, groups)),
        longest=max(map(len, trained)),
        answers_to_make=answers_to_make,
        steps=steps,
        evaluations=evaluations,
        looks=looks,
        seconds=cost.batch * config.gradient_accumulation_steps * steps
        + cost.evaluation * evaluations
        + cost.look * looks,
        peak_bytes=cost.peak_bytes,
    )


def _answers_to_make(
    base: ResidentBase,
    parts: Sequence[Sequence[EncodedPair]],
    watched: Sequence[Tokens],
    config: BAPOConfig,
) -> int:
    """Answers that a run would put into the cache: to what is anchored on them, or watched."""
    asked = [row.prompt for part in parts for row in part] if config.anchored_on_base else watched
    found = known_answers(base, list(dict.fromkeys(asked)), config)
    return sum(answers.count(None) for answers in found)


def _anchored(
    base: ResidentBase, part: Sequence[EncodedPair], config: BAPOConfig
) -> list[EncodedPair]:
    """The rows with the base answers that are known, and the longest ones that there may be."""
    if not config.anchored_on_base:
        return [row.anchored_on_chosen() if config.anchored else row for row in part]
    unknown = (0,) * config.anchor_max_new_tokens
    found = known_answers(base, [row.prompt for row in part], config)
    return [
        row.anchored_on([answer or unknown for answer in of])
        for row, of in zip(part, found, strict=True)
    ]


def _evaluations(config: BAPOConfig, steps: int, epoch: int) -> int:
    """How often held-out pairs are scored: after every epoch, unless steps are asked for."""
    if config.eval_strategy == "steps":
        every = config.eval_steps or config.logging_steps
        return steps // int(every if every >= 1 else math.ceil(every * steps))
    return math.ceil(steps / epoch)


@dataclass(frozen=True)
class _Cost:
    """Seconds of a usual batch, of an evaluation and of a look, and the peak of the longest."""

    batch: float
    evaluation: float
    look: float
    peak_bytes: int


def _measure(
    base: ResidentBase,
    config: BAPOConfig,
    groups: Sequence[Group],  # the longest first
    evaluated: Sequence[EncodedPair],
    watched: Sequence[Tokens],
) -> _Cost:
    size = config.per_device_train_batch_size
    usual = groups[len(groups) // 2 :][:size]
    answer = (0,) * config.anchor_max_new_tokens
    looked_at = [EncodedPair(prompt, None, None, (answer,)) for prompt in watched]
    with trainable(base, config) as policy:
        trainer = BAPOTrainer(
            policy,
            config,
            [_referenced(pair) for pair, *_ in usual],
            eval_pairs=[_referenced(pair) for pair in evaluated],
        )
        _step(trainer, groups[:size])
        peak = _peak_bytes()
        batch = _seconds(lambda: _step(trainer, usual))
        held_out = evaluated[: config.per_device_eval_batch_size]
        evaluation = _seconds(lambda: _look(trainer, held_out)) if held_out else 0.0
        look = (
            _seconds(lambda: drift(policy, looked_at, bf16=bool(config.bf16))) if watched else 0.0
        )
    of_all = evaluation * math.ceil(len(evaluated) / config.per_device_eval_batch_size)
    return _Cost(batch, of_all, look, peak)


def _step(trainer: BAPOTrainer, groups: Sequence[Group]) -> None:
    batch = trainer._prepare_inputs(collate_groups([tuple(map(_referenced, g)) for g in groups]))
    loss = trainer.compute_loss(trainer.model.train(), batch)
    if isinstance(loss, torch.Tensor):
        loss.backward()
    trainer.model.zero_grad()


def _look(trainer: BAPOTrainer, pairs: Sequence[EncodedPair]) -> None:
    batch = collate_groups([(_referenced(pair),) for pair in pairs])
    trainer.prediction_step(trainer.model.eval(), batch)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _tokens(group: Group) -> int:
    return sum(map(len, group))


def _referenced(pair: EncodedPair) -> EncodedPair:
    return replace(pair, reference=(0.0,) * len(pair.branches))


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
