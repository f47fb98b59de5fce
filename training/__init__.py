"""Preference data in, adapter artifact out.

Owns the pairs, the base answers (anchors), the BAPO loss, the trainer and the
evaluation. Refuses to know how adapters are stored, versioned or served: that is
`adapters` and `server`. Importing this package loads no torch; each public name is
fetched from its module when it is first used.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.config import BAPOConfig
    from training.data import PreferencePair, load_pairs
    from training.evaluation.preference import pair_accuracy
    from training.evaluation.retention import facts_kept
    from training.losses import bapo_loss
    from training.run import TrainResult, train_adapter
    from training.trainer import BAPOTrainer

__all__ = [
    "BAPOConfig",
    "BAPOTrainer",
    "PreferencePair",
    "TrainResult",
    "bapo_loss",
    "facts_kept",
    "load_pairs",
    "pair_accuracy",
    "train_adapter",
]

# Where it is installed, PEFT imports it, and it says on stderr that kernels could be downloaded.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

_HOME = {
    "BAPOConfig": "training.config",
    "BAPOTrainer": "training.trainer",
    "PreferencePair": "training.data",
    "TrainResult": "training.run",
    "bapo_loss": "training.losses",
    "facts_kept": "training.evaluation.retention",
    "load_pairs": "training.data",
    "pair_accuracy": "training.evaluation.preference",
    "train_adapter": "training.run",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'training' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
