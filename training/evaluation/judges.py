"""Who wins of two answers: judges that need no other machine, and the choice of one.

Owns the contest and the local judges, which score each answer alone (exact, a regular expression,
any function). A model behind an endpoint is `endpoint_judge.py`'s. Equal answers are a tie for
every judge and are shown to none.
"""

import importlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from training.errors import ConfigError
from training.evaluation.items import Outcome
from training.progress import Tick, silent

Score = Callable[[str, str, str | None], float]
"""From prompt, answer and wanted answer (where it is known) to a figure: more is better."""


@dataclass(frozen=True)
class Contest:
    """Two answers to one prompt; the outcome is that of `answer`."""

    prompt: str
    answer: str
    other: str
    wanted: str | None = None


@dataclass(frozen=True)
class Judgement:
    """The outcome for `answer`, and what the judge said where it speaks."""

    outcome: Outcome
    said: tuple[str, ...] = ()


class Judge(Protocol):
    """Something that decides contests, in their order, and tells of each that is done."""

    def __call__(self, contests: Sequence[Contest], tick: Tick = silent) -> list[Judgement]: ...


@dataclass(frozen=True)
class ByScore:
    """The answer with the higher score wins."""

    score: Score

    def __call__(self, contests: Sequence[Contest], tick: Tick = silent) -> list[Judgement]:
        found = []
        for contest in contests:
            ours, theirs = (
                self.score(contest.prompt, answer, contest.wanted)
                for answer in (contest.answer, contest.other)
            )
            found.append(Judgement(outcome_of(ours, theirs)))
            tick(1)
        return found


def local_judge(name: str) -> Judge:
    """`exact`, `regex:PATTERN` or `module:function`. Raises ConfigError."""
    if name == "exact":
        return ByScore(_exact)
    kind, _, rest = name.partition(":")
    if kind == "regex":
        return ByScore(_matches(compiled(rest)))
    return ByScore(_checked(name, function_of(name)))


def outcome_of(ours: float, theirs: float) -> Outcome:
    """Of two scores, of which the higher one wins."""
    return "tie" if ours == theirs else ("win" if ours > theirs else "loss")


def compiled(pattern: str) -> re.Pattern[str]:
    """A regular expression, letter case aside. Raises ConfigError."""
    if not pattern:
        raise ConfigError("A regular expression is missing: regex:PATTERN.")
    try:
        return re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise ConfigError(f"'{pattern}' is no regular expression: {error}.") from None


def function_of(name: str) -> Callable[..., object]:
    """The function that `module:function` names. Raises ConfigError."""
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        raise ConfigError(
            f"There is no judge '{name}': give exact, regex:PATTERN, module:function or a URL."
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ConfigError(f"The judge {name} cannot be imported: {error}.") from error
    except AttributeError:
        raise ConfigError(f"The module {module} has no {attribute}.") from None
    if not callable(found):
        raise ConfigError(f"{name} is no function.")
    result: Callable[..., object] = found
    return result


def _exact(prompt: str, answer: str, wanted: str | None) -> float:
    if wanted is None:
        raise ConfigError("--judge exact needs the wanted answers: give --pairs.")
    return float(answer.strip() == wanted.strip())


def _matches(pattern: re.Pattern[str]) -> Score:
    return lambda prompt, answer, wanted: float(pattern.search(answer) is not None)


def _checked(name: str, function: Callable[..., object]) -> Score:
    """`function(prompt, answer)` as a score that is a number."""

    def score(prompt: str, answer: str, wanted: str | None) -> float:
        try:
            found = float(function(prompt, answer))  # type: ignore[arg-type]
        except Exception as error:  # somebody else's code
            raise ConfigError(f"The judge {name} failed: {error}.") from error
        if math.isnan(found):
            raise ConfigError(f"The judge {name} gave no number (NaN) for {answer[:80]!r}.")
        return found

    return score
