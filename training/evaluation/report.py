"""Base and adapter side by side, as a table for people and as JSON for programs.

Owns which figures make an evaluation and how they look. Refuses to compute them: that is
done by `preference`, `retention` and `style` beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from adapters.statistics import Proportion
from training.data import PreferencePair
from training.evaluation.preference import pair_accuracy
from training.evaluation.retention import Question, facts_kept
from training.model import ResidentBase, adapted
from training.progress import Tick, counting, silent

LIKELIHOOD = "chosen is more likely"
MARGIN = "chosen gained more than rejected"
FACTS = "facts right"

Figures = dict[str, Proportion]


@dataclass(frozen=True)
class Evaluation:
    """The figures of each model that was asked, by its name, the base first."""

    columns: dict[str, Figures]
    right: dict[str, tuple[bool, ...]] = field(default_factory=dict)
    """Of each model, which questions it answered right, in their order."""

    def as_json(self) -> dict[str, Any]:
        return {
            model: {name: _json_of(figure) for name, figure in figures.items()}
            for model, figures in self.columns.items()
        }

    def as_table(self) -> Table:
        """One row a figure, one column a model, with n and Wilson's 95 % interval."""
        table = Table("figure", *self.columns, caption="rate [95 % interval] of n")
        names = dict.fromkeys(name for column in self.columns.values() for name in column)
        for name in names:
            table.add_row(
                name, *(str(c[name]) if name in c else "–" for c in self.columns.values())
            )
        return table


def evaluate_adapter(
    base: ResidentBase,
    adapter: str | Path | None,
    pairs: Sequence[PreferencePair] = (),
    questions: Sequence[Question] = (),
    *,
    progress: bool = False,
) -> Evaluation:
    """Ask the base and, when it is given, the adapter the same things; `progress` shows bars."""
    ask = partial(_ask, tokenizer=base.tokenizer, pairs=pairs, questions=questions)
    items = len(pairs) + len(questions)
    with counting("base" if progress else None, items) as tick:
        answers = {"base": ask(base.model, tick=tick)}
    if adapter is not None:
        name = Path(adapter).name
        with (
            adapted(base, adapter) as model,
            counting(name if progress else None, items + len(pairs)) as tick,
        ):
            answers[name] = ask(model, tick=tick)
    return Evaluation(
        {name: figures for name, (figures, _) in answers.items()},
        {name: right for name, (_, right) in answers.items()},
    )


def figures_of(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PreferencePair],
    questions: Sequence[Question],
    tick: Tick = silent,
) -> Figures:
    """Every figure that the given pairs and questions allow.

    `tick` hears of every pair and question that is done, of pairs twice where the model wears an
    adapter.
    """
    return _ask(model, tokenizer, pairs, questions, tick)[0]


def _ask(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PreferencePair],
    questions: Sequence[Question],
    tick: Tick = silent,
) -> tuple[Figures, tuple[bool, ...]]:
    """The figures, and which questions were answered right."""
    figures: Figures = {}
    right: tuple[bool, ...] = ()
    if pairs:
        accuracy = pair_accuracy(model, tokenizer, pairs, tick=tick)
        figures[LIKELIHOOD] = accuracy.likelihood
        if accuracy.margin is not None:
            figures[MARGIN] = accuracy.margin
    if questions:
        kept = facts_kept(model, tokenizer, questions, tick=tick)
        figures[FACTS], right = kept.score, kept.right
    return figures, right


def _json_of(figure: Proportion) -> dict[str, float]:
    low, high = figure.interval
    return {"rate": figure.rate, "low": low, "high": high, "n": figure.n}
