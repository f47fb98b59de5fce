"""The offline half of the demos: train every user's adapter, with and without anchor, and count.

Owns the comparison table of BAPO against DPO on the same pairs; everything that learns or
measures is `training`'s. One base stays in memory for all users.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from adapters.statistics import Proportion
from training.config import BAPOConfig, Method
from training.data import PreferencePair
from training.evaluation.preference import pair_accuracy
from training.evaluation.retention import Question, facts_kept
from training.evaluation.style import exact_style
from training.model import ResidentBase, adapted
from training.progress import Tick, counting
from training.run import train_adapter

METHODS: dict[str, Method] = {"BAPO": "bapo", "DPO": "dpo"}
LIKELIHOOD = "chosen is more likely"
STYLE = "greedy answer is the preferred one"
FACTS = "facts right"

Figures = dict[str, Proportion]


@dataclass(frozen=True)
class User:
    """One user's taste: pairs to learn from, pairs to measure on, and questions to ask him."""

    name: str
    train: Sequence[PreferencePair]
    held_out: Sequence[PreferencePair]
    style: Sequence[tuple[str, str]]  # prompts, and the answers expected to the letter


def learn(
    base: ResidentBase,
    users: Sequence[User],
    questions: Sequence[Question],
    work: Path,
    **settings: Any,
) -> Table:
    """Train `work/<user>` (BAPO) and `work/<user>-dpo`; the table of both beside the base."""
    table = Table(
        "user", "model", "held-out pairs", "style", "facts kept", title="BAPO against DPO"
    )
    table.caption = (
        f"below each rate its 95 % interval (Wilson); {len(users[0].held_out)} pairs, "
        f"{len(users[0].style)} answers, {len(questions)} facts"
    )
    for column in table.columns[2:]:
        column.justify = "right"
    facts = measure(base, None, "the base: facts", (), (), questions)[FACTS]
    for user in users:
        figures = measure(base, None, f"{user.name}: base", user.held_out, user.style, ())
        add_row(table, user.name, "base", {**figures, FACTS: facts})
        for label, method in METHODS.items():
            folder = work / (user.name if method == "bapo" else f"{user.name}-dpo")
            config = BAPOConfig(method=method, output_dir=str(work / "trainer"), **settings)
            title = f"{user.name}: {label}"
            train_adapter(base, user.train, folder, config, overwrite=True, label=title)
            found = measure(
                base, folder, f"{title}: measuring", user.held_out, user.style, questions
            )
            add_row(table, "", label, found)
        table.add_section()
    return table


def measure(
    base: ResidentBase,
    adapter: Path | None,
    label: str,
    held_out: Sequence[PreferencePair],
    style: Sequence[tuple[str, str]],
    questions: Sequence[Question],
) -> Figures:
    """The figures of the base, or of an adapter on it, with a bar meanwhile."""
    pairs = len(held_out) * (1 if adapter is None else 2)  # under the adapter, and without it
    with counting(label, pairs + len(style) + len(questions)) as tick:
        if adapter is None:
            return _figures(base.model, base, held_out, style, questions, tick)
        with adapted(base, adapter) as model:
            return _figures(model, base, held_out, style, questions, tick)


def _figures(
    model: torch.nn.Module,
    base: ResidentBase,
    held_out: Sequence[PreferencePair],
    style: Sequence[tuple[str, str]],
    questions: Sequence[Question],
    tick: Tick,
) -> Figures:
    figures: Figures = {}
    if held_out:
        accuracy = pair_accuracy(model, base.tokenizer, held_out, tick=tick)
        figures[LIKELIHOOD] = accuracy.likelihood
    if questions:
        figures[FACTS] = facts_kept(model, base.tokenizer, questions, tick=tick).score
    if style:
        figures[STYLE] = exact_style(model, base.tokenizer, style, tick=tick)
    return figures


def add_row(table: Table, user: str, model: str, figures: Figures) -> None:
    """A row of rates, each with its 95 % interval below it."""
    table.add_row(user, model, *(cell(figures.get(name)) for name in (LIKELIHOOD, STYLE, FACTS)))


def cell(figure: Proportion | None) -> str:
    if figure is None:
        return "–"
    low, high = figure.interval
    return f"{figure.rate:.1%}\n[dim]{100 * low:.0f} to {100 * high:.0f}[/dim]"
