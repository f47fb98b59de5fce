"""Whose answer is better, the adapter's or the base's?

Owns the prompts of the duels, the answers and who fights whom. Refuses judging (`judges.py`).
Every model answers greedily; equal answers are a tie that no judge sees.
"""

from collections.abc import Sequence

from training.errors import ConfigError
from training.evaluation.answers import greedy_answers
from training.evaluation.asked import Asked
from training.evaluation.items import DriftItem, Duel, DuelItem, PairItem, text_of
from training.evaluation.judges import ByScore, Contest, Judge
from training.progress import Tick, silent


def duels_on(pairs: Sequence[PairItem], prompts: Sequence[DriftItem]) -> list[DuelItem]:
    """Duels on the prompts of pairs, whose chosen answer is the wanted one; else on the user's."""
    if pairs:
        return [DuelItem(prompt=p.prompt, wanted=p.chosen, user=p.user) for p in pairs]
    return [DuelItem(prompt=i.prompt, user=i.user) for i in prompts if i.of == "user"]


def duels_for(
    judge: Judge | None, pairs: Sequence[PairItem], prompts: Sequence[DriftItem]
) -> list[DuelItem]:
    """The duels that a judge is wanted for, none without one.

    Raises ConfigError where there is no prompt, and for a judge of answers alone that fails on a
    first trial, before anybody has answered anything.
    """
    if judge is None:
        return []
    items = duels_on(pairs, prompts)
    if not items:
        raise ConfigError("--judge needs prompts: give --pairs or --prompts.")
    if isinstance(judge, ByScore):
        judge([Contest(text_of(items[0].prompt), "A", "B", items[0].wanted)])
    return items


def answer_duels(
    items: Sequence[DuelItem], asked: Asked, tick: Tick = silent, *, max_new_tokens: int
) -> None:
    """Write the model's answer into each item."""
    prompts = [item.prompt for item in items]
    texts = greedy_answers(asked, prompts, max_new_tokens=max_new_tokens, tick=tick)
    for item, text in zip(items, texts, strict=True):
        item.texts[asked.name] = text


def judge_duels(
    items: Sequence[DuelItem], model: str, against: str, judge: Judge, tick: Tick = silent
) -> None:
    """Write the outcome of each duel of `model` with `against`; both have answered."""
    fought = [item for item in items if item.texts[model] != item.texts[against]]
    tick(len(items) - len(fought))
    contests = [
        Contest(text_of(item.prompt), item.texts[model], item.texts[against], item.wanted)
        for item in fought
    ]
    judged = {id(item): j for item, j in zip(fought, judge(contests, tick), strict=True)}
    for item in items:
        found = judged.get(id(item))
        item.duels.append(
            Duel(
                model=model,
                against=against,
                outcome=found.outcome if found else "tie",
                said=list(found.said) if found else [],
            )
        )
