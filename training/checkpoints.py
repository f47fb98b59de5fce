"""Checkpoints of a run: whose they are, which one is whole, and how a stop makes one.

Owns the line between one run and another (its identity) and the answer to Ctrl-C. Refuses
what is in a checkpoint: that is the Trainer's. A run is resumed from its own last whole
checkpoint or not at all.
"""

import hashlib
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from adapters.base import BaseModelInfo
from training.config import BAPOConfig
from training.data import PreferencePair, pairs_digest
from training.errors import ConfigError
from training.trainer import whole_checkpoints

IDENTITY_FILE = "bapo_run.json"


def run_identity(base: BaseModelInfo, pairs: list[PreferencePair], config: BAPOConfig) -> str:
    """What makes two runs the same: base, data and every setting that shapes the result."""
    facts = {
        "base": base.fingerprint,
        "data": pairs_digest(pairs),
        "settings": config.hyperparameters(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def claim(folder: Path, identity: str) -> None:
    """Write whose checkpoints the folder is going to hold."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / IDENTITY_FILE).write_text(json.dumps({"run": identity}) + "\n", encoding="utf-8")


def last_checkpoint(folder: Path, identity: str) -> Path | None:
    """The run's last whole checkpoint, None before the first.

    Raises ConfigError where the checkpoints in the folder are another run's.
    """
    found = whole_checkpoints(folder)
    if not found:
        return None
    try:
        owner = json.loads((folder / IDENTITY_FILE).read_text(encoding="utf-8"))["run"]
    except (OSError, ValueError, KeyError, TypeError):
        owner = None
    if owner != identity:
        raise ConfigError(
            f"The checkpoints in {folder} are of a run with another base, data or settings;"
            " remove them or give another output_dir."
        )
    return found[-1]


class StopWhenAsked(TrainerCallback):  # type: ignore[misc]
    """Ends the training after the step at which it was asked to, with a checkpoint."""

    def __init__(self) -> None:
        self.asked = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer after each optimiser step."""
        if self.asked and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, SIGINT and SIGTERM ask once; a second SIGINT interrupts at once."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals are the main thread's
            return

        def ask(number: int, frame: FrameType | None) -> None:
            if self.asked and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.asked = True

        before = {n: signal.signal(n, ask) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
