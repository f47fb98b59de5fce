"""Does the model prefer what the user prefers?

Two readings of one question. By likelihood: the chosen answer is the more probable one.
By margin: it gained more than the rejected one did against the base (the implicit reward
of DPO). The margin is what training optimises; the likelihood is what a user will see.
A tie counts half. Scenarios must be held out by the caller, or answers leak.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from adapters.statistics import Proportion
from training.data import PreferencePair
from training.encoding import EncodedPair, encode_pairs
from training.errors import DataError
from training.model import reference
from training.progress import Tick, silent
from training.scoring import score_pairs


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


def _wins(scores: Tensor) -> Proportion:
    """How often column 0 is above column 1, a tie for half; scores (n, 2)."""
    won = (scores[:, 0] > scores[:, 1]).sum() + 0.5 * (scores[:, 0] == scores[:, 1]).sum()
    return Proportion(float(won), len(scores))
