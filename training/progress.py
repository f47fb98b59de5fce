"""The live line of a training run: where it is, how it goes, how long it will take.

Owns what is shown and nothing that is computed. Silent unless asked for.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback


class Bar(Protocol):
    """Something that is told how far a job is."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


Tick = Callable[[int], None]
"""Something that is told how many more items are done."""


@contextmanager
def bar(label: str | None, *, transient: bool = False) -> Iterator[Bar]:
    """A progress bar on stderr under `label`; without a label, nothing is shown.

    A transient one vanishes when it is done.
    """
    if label is None:
        yield _silent
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=Console(stderr=True), transient=transient) as progress:
        task = progress.add_task(label, total=None, note="")

        def show(done: int, total: int, note: str = "") -> None:
            progress.update(task, completed=done, total=total, note=note)

        yield show
        if progress.tasks[task].total is None:  # there was nothing to do
            progress.update(task, visible=False)


@contextmanager
def counting(label: str | None, total: int) -> Iterator[Tick]:
    """A transient bar over `total` items that is told of each batch of them."""
    done = 0
    with bar(label, transient=True) as show:

        def tick(items: int) -> None:
            nonlocal done
            done += items
            show(done, total)

        yield tick


def silent(items: int) -> None:
    """A tick that nobody sees."""


def _silent(done: int, total: int, note: str = "") -> None:
    return None


class TrainingBar(TrainerCallback):  # type: ignore[misc]
    """Moves a bar at every step, with loss, reward accuracy, anchor and tokens/s beside it."""

    def __init__(self, show: Bar) -> None:
        self.show = show
        self.figures: Callable[[], dict[str, float]] = dict
        self.tokens: Callable[[], int] = int
        self._began = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer before the first step."""
        self._began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer after each optimiser step."""
        now = self.figures()
        if not now:
            return
        note = f"loss {now['loss']:.3f}  accuracy {now['rewards/accuracies']:.0%}"
        if "anchor/loss" in now:
            note += f"  anchor {now['anchor/loss']:.2f}"
        pace = self.tokens() / max(time.monotonic() - self._began, 1e-9)
        note += f"  {pace:,.0f} tokens/s"
        self.show(state.global_step, state.max_steps, note)
