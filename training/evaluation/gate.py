"""Thresholds on an evaluation, and the signed verdict that follows from them.

Owns the file of thresholds and the judgement, line by line. Refuses measuring (`report.py`) and
whose verdicts count (`adapters/gate.py`). What is measured and signed is the served form of the
adapter, rounding included (docs/decisions/0004-signed-verdicts.md).
Invariant: a figure that was not measured fails its line.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from adapters.artifact import artifact_digest, read_manifest, write_manifest
from adapters.base import BaseModelInfo
from adapters.gate import sign
from adapters.limits import Limits
from adapters.normalise import normalise
from adapters.provenance import derive_manifest
from adapters.statistics import Interval, Proportion, paired_rates
from adapters.validation import validate
from adapters.verdict import Verdict, VerdictLine
from training.errors import ConfigError
from training.evaluation.report import FACTS, LIKELIHOOD, MARGIN, Evaluation

Figure = Literal["preference.likelihood", "preference.margin", "retention.facts", "retention.drop"]
RATES: Mapping[Figure, str] = {
    "preference.likelihood": LIKELIHOOD,
    "preference.margin": MARGIN,
    "retention.facts": FACTS,
}


class Threshold(BaseModel):
    """A bound on one figure: on what was measured or, with `confidence`, on what may be true."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at_least: float | None = Field(None, ge=-1, le=1)
    at_most: float | None = Field(None, ge=-1, le=1)
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


Thresholds = Mapping[Figure, Threshold]


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
        thresholds = TypeAdapter(dict[Figure, Threshold]).validate_python(content)
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


def figures_measured(found: Evaluation, adapter: str) -> dict[Figure, Measured]:
    """What a threshold can be about; `adapter` is its column, beside the base's."""
    column = found.columns[adapter]
    measured = {name: _of_rate(column[row]) for name, row in RATES.items() if row in column}
    before, after = found.right.get("base", ()), found.right.get(adapter, ())
    if before:
        measured["retention.drop"] = _of_drop(before, after)
    return measured


def judge(thresholds: Thresholds, measured: Mapping[Figure, Measured]) -> list[VerdictLine]:
    """One line for each threshold, in their order."""
    return [_line(name, threshold, measured.get(name)) for name, threshold in thresholds.items()]


@contextmanager
def served_form(adapter: Path, base: BaseModelInfo) -> Iterator[Path]:
    """The adapter as it would be served, in a folder of the same name that is gone afterwards.

    Raises InvalidAdapter for one that no registry would take.
    """
    validate(adapter, base, Limits())
    with tempfile.TemporaryDirectory(prefix="bapo-gate-") as work:
        served = Path(work, adapter.resolve().name)
        normalise(adapter, served)
        yield served


def write_verdict(
    adapter: Path,
    served: Path,
    base: BaseModelInfo,
    lines: Sequence[VerdictLine],
    gate: Path,
    key: Ed25519PrivateKey,
) -> Verdict:
    """Sign what was said of `served` and write it into the adapter's manifest; the verdict."""
    found = validate(adapter, base, Limits())
    name = adapter.resolve().name
    manifest = read_manifest(adapter) or derive_manifest(adapter, base, found, name)
    verdict = Verdict(
        digest=artifact_digest(served),
        base_fingerprint=base.fingerprint,
        gate=f"sha256:{hashlib.sha256(gate.read_bytes()).hexdigest()}",
        passed=all(line.passed for line in lines),
        lines=list(lines),
    )
    signed = sign(verdict, key)
    write_manifest(adapter, manifest.model_copy(update={"schema_version": 3, "verdict": signed}))
    return signed


def _line(name: Figure, threshold: Threshold, measured: Measured | None) -> VerdictLine:
    return VerdictLine(
        threshold=f"{name} {threshold}",
        measured="not measured" if measured is None else str(measured),
        passed=measured is not None and measured.meets(threshold),
    )


def _of_rate(rate: Proportion) -> Measured:
    return Measured(rate.rate, rate.n, rate.interval_at)


def _of_drop(before: Sequence[bool], after: Sequence[bool]) -> Measured:
    """The share of questions lost, less those gained; the interval is of the paired difference."""

    def interval_at(confidence: float) -> Interval:
        change = paired_rates(before, after, confidence=confidence)
        return -change.high, -change.low

    return Measured(-paired_rates(before, after).difference, len(before), interval_at)
