"""Does the model prefer what the user prefers?

Two readings of one question. By likelihood: the chosen answer is the more probable one.
By margin: it gained more than the rejected one did against the base (the implicit reward
of DPO). The margin is what training optimises; the likelihood is what a user will see.
A tie counts half. Scenarios must be held out by the caller, or answers leak.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from adapters.statistics import Proportion
from training.data import ANSWER_COLUMNS, PAIR_COLUMNS, PreferencePair, pair_of
from training.encoding import EncodedPair, encode_pairs
from training.errors import DataError
from training.evaluation.asked import Asked
from training.evaluation.items import BASE, PairItem, PairScore
from training.evaluation.users import owner
from training.model import reference
from training.progress import Tick, silent
from training.scoring import score_pairs
from training.sources import read_records
from training.users import USER_COLUMN


@dataclass(frozen=True)
class PairAccuracy:
    """How often the chosen answer wins; `margin` is None for a model without an adapter."""

    likelihood: Proportion
    margin: Proportion | None


def pair_accuracy(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PreferencePair],
    *,
    batch_size: int = 32,
    tick: Tick = silent,
) -> PairAccuracy:
    """Score every pair under `model` and, where it wears an adapter, against its base.

    Raises DataError where there is no pair or one cannot be encoded.
    """
    if not pairs:
        raise DataError("There are no preference pairs to evaluate on.")
    encoded: list[EncodedPair] = encode_pairs(tokenizer, pairs)
    policy = score_pairs(model, encoded, batch_size=batch_size, tick=tick)  # (n, 2)
    if not isinstance(model, PeftModel):
        return PairAccuracy(_wins(policy), None)
    with reference(model):
        base = score_pairs(model, encoded, batch_size=batch_size, tick=tick)  # (n, 2)
    return PairAccuracy(_wins(policy), _wins(policy - base))


def load_pair_items(source: str | Path) -> list[PairItem]:
    """Held-out pairs, each with its `user_id` where it has one. Raises DataError."""
    records = read_records(source, (*PAIR_COLUMNS, USER_COLUMN), needed=ANSWER_COLUMNS)
    items = [item_of(pair_of(record, at), owner(record, at)) for at, record in records]
    if not items:
        raise DataError(f"{source} is empty; give at least one preference pair.")
    return items


def item_of(pair: PreferencePair, user: str | None = None) -> PairItem:
    """The pair as something that is asked."""
    return PairItem(prompt=pair.prompt, chosen=pair.chosen, rejected=pair.rejected, user=user)


def score_pair_items(
    items: Sequence[PairItem], asked: Asked, tick: Tick = silent, *, batch_size: int = 32
) -> None:
    """Write the model's log-probabilities into each item.

    The margin is against what stands there for the base. Raises DataError for a pair that cannot
    be encoded.
    """
    pairs = [PreferencePair(item.prompt, item.chosen, item.rejected) for item in items]
    encoded = encode_pairs(asked.tokenizer, pairs)
    scores = score_pairs(asked.model, encoded, batch_size=batch_size, tick=tick)  # (n, 2)
    for item, (chosen, rejected) in zip(items, scores.tolist(), strict=True):
        before = None if asked.is_base else item.scores.get(BASE)
        margin = None
        if before is not None:
            margin = (chosen - before.chosen) - (rejected - before.rejected)
        item.scores[asked.name] = PairScore(chosen=chosen, rejected=rejected, margin=margin)


def _wins(scores: Tensor) -> Proportion:
    """How often column 0 is above column 1, a tie for half; scores (n, 2)."""
    won = (scores[:, 0] > scores[:, 1]).sum() + 0.5 * (scores[:, 0] == scores[:, 1]).sum()
    return Proportion(float(won), len(scores))
