"""Thresholds on an evaluation, and what each of them says of an adapter.

Owns the file of thresholds and the judgement, line by line. Refuses measuring (`evaluate.py`), the
verdict that is signed (`gated.py`) and whose verdicts count (`adapters/gate.py`).
Invariant: a figure that was not measured fails its line.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import expm1
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from adapters.statistics import Interval
from adapters.verdict import VerdictLine
from training.errors import ConfigError
from training.evaluation.definitions import FIXED
from training.evaluation.figures import Sample, samples_of
from training.evaluation.items import BASE, Items

DROP, RISE = ".drop", ".rise"
SHORT = {"retention.drop": "retention.facts.drop"}
PERPLEXITY_RISE = "retention.perplexity.rise"
_TASK = re.compile(r"tasks\.[\w.,:-]+")


def _named(name: str) -> str:
    """A figure's name, or that of what it lost against the base. Raises ValueError."""
    full = SHORT.get(name, name)
    rates = {f.name for f in FIXED if f.kind == "rate" and f.better == "higher" and not f.relative}
    known = {f.name for f in FIXED} | {rate + DROP for rate in rates} | {PERPLEXITY_RISE}
    if full not in known and not _TASK.fullmatch(full):
        raise ValueError(
            f"there is no figure of this name; there are {', '.join(sorted(known))},"
            " tasks.NAME.METRIC and tasks.NAME.METRIC.drop"
        )
    return name


FigureName = Annotated[str, AfterValidator(_named)]


class Threshold(BaseModel):
    """A bound on one figure: on what was measured or, with `confidence`, on what may be true."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at_least: float | None = Field(None, allow_inf_nan=False)
    at_most: float | None = Field(None, allow_inf_nan=False)
    confidence: float | None = Field(None, ge=0.5, lt=1)
    """One-sided: with 0.95, the figure is beyond the bound in one of twenty such samples."""

    @model_validator(mode="after")
    def _is_one_bound(self) -> Self:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("give at_least or at_most, one of them")
        return self

    def __str__(self) -> str:
        bound = f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"
        return bound if self.confidence is None else f"{bound} at {self.confidence:g}"


Thresholds = Mapping[str, Threshold]


@dataclass(frozen=True)
class Measured:
    """A figure, of how many items, and its two-sided interval at any confidence."""

    value: float
    n: int
    interval_at: Callable[[float], Interval]

    def meets(self, threshold: Threshold) -> bool:
        low = high = self.value
        if threshold.confidence is not None:  # both sides leave out what one side may
            low, high = self.interval_at(2 * threshold.confidence - 1)
        if threshold.at_least is not None:
            return low >= threshold.at_least
        return threshold.at_most is not None and high <= threshold.at_most

    def __str__(self) -> str:
        low, high = self.interval_at(0.95)
        return f"{self.value:.4g} [{low:.4g}, {high:.4g}] of {self.n}"


def load_thresholds(path: Path) -> Thresholds:
    """The file of thresholds, YAML. Raises ConfigError, one sentence."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        thresholds = TypeAdapter(dict[FigureName, Threshold]).validate_python(content)
    except FileNotFoundError:
        raise ConfigError(f"There is no file of thresholds {path}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a YAML file: {str(error).splitlines()[0]}.") from None
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        where = ".".join(map(str, found["loc"]))
        raise ConfigError(f"{path}: {where or 'the file'}: {found['msg']}.") from None
    if not thresholds:
        raise ConfigError(f"{path} has no thresholds: whatever is measured would pass.")
    return thresholds


def measured(name: str, items: Items, adapter: str) -> Measured | None:
    """What a threshold on this figure is about; None where it was not measured."""
    full = SHORT.get(name, name)
    of = full.removesuffix(DROP).removesuffix(RISE)
    after = samples_of(items, adapter).get(of)
    if after is None or of == full:
        return None if after is None else Measured(after.value, after.n, after.interval_at)
    before = samples_of(items, BASE).get(of)
    if before is None:
        return None
    return _rise(before, after) if full.endswith(RISE) else _drop(before, after)


def judge(thresholds: Thresholds, items: Items, adapter: str) -> list[VerdictLine]:
    """One line for each threshold, in their order; `adapter` is the model's name in the items."""
    return [
        _line(name, threshold, measured(name, items, adapter))
        for name, threshold in thresholds.items()
    ]


def _line(name: str, threshold: Threshold, measured: Measured | None) -> VerdictLine:
    return VerdictLine(
        threshold=f"{name} {threshold}",
        measured="not measured" if measured is None else str(measured),
        passed=measured is not None and measured.meets(threshold),
    )


def _drop(before: Sample, after: Sample) -> Measured:
    """The share of items lost, less those gained; the interval is of the paired difference."""

    def interval_at(confidence: float) -> Interval:
        change = after.change_from(before, confidence)
        return 0.0 - change.high, 0.0 - change.low

    return Measured(0.0 - after.change_from(before).difference, after.n, interval_at)


def _rise(before: Sample, after: Sample) -> Measured:
    """How much larger a perplexity is than the base's: 0.05 is 5 %, on the same windows."""

    def interval_at(confidence: float) -> Interval:
        change = after.change_from(before, confidence)
        return expm1(change.low), expm1(change.high)

    return Measured(expm1(after.change_from(before).difference), after.n, interval_at)
