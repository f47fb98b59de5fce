"""Who is asked, and what a measure is: the two nouns that every measure shares.

A measure has its items and writes, under the name of the model that is asked, what it made of
each. It is called once a model, the base first, and tells `tick` of every item that is done.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from training.evaluation.items import BASE
from training.progress import Tick


@dataclass(frozen=True)
class Asked:
    """A model that is asked: its name in the report, itself, and the tokenizer."""

    name: str
    model: torch.nn.Module
    """Of transformers; an adapter is a PeftModel, so that it can be taken off for a moment."""
    tokenizer: PreTrainedTokenizerBase

    @property
    def is_base(self) -> bool:
        return self.name == BASE


@dataclass(frozen=True)
class Measure:
    """What the bar says, of how many items, and the asking."""

    label: str
    total: int
    ask: Callable[[Asked, Tick], None]
