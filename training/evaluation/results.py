"""What an evaluation found, as data: `report.json`, whose form is the interface to everything else.

Owns the schema of the whole and the file. Refuses the items (`items.py`), measuring and arithmetic:
every figure and comparison follows from the items (`figures.py`), so a report that was read again
can be judged, drawn and compared as the fresh one.

    Report
    ├── models        the base first, then the adapters, each with its figures
    ├── items         what was asked, once, and under it what each model made of it
    │                 pairs, questions, choices, texts, drift, duels, refusals, tasks
    └── comparisons   figure by figure, one model against another, on the same items

Invariant: figures of what was not measured are absent, never 0.
"""

import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import AwareDatetime, Field, ValidationError, model_validator

from adapters.artifact import Manifest
from adapters.files import write_durably
from adapters.verdict import Verdict
from training.errors import DataError
from training.evaluation.items import BASE, Data, Items

REPORT_FILE = "report.json"

Kind = Literal["rate", "mean", "perplexity"]
Better = Literal["higher", "lower"]


class Figure(Data):
    """One number, how sure it is, and of how many items."""

    value: float
    low: float | None
    """End of the two-sided 95 % interval; None where the items say nothing of it."""
    high: float | None
    n: int
    """Items; tokens for a perplexity."""
    kind: Kind
    unit: str = ""
    """"nats", "tokens", "nats per token"; empty for a rate."""
    better: Better | None = None
    """Which way is good; None for what is only to be known."""
    users: int | None = None
    """How many users the interval was resampled over; None where items stand for themselves."""


class Comparison(Data):
    """A figure of two models on the same items: `after - before`, so what fell is negative."""

    figure: str
    before: str
    """A model's name, usually "base"."""
    after: str
    difference: float
    """Of rates in [-1, 1]; of perplexities in nats per token."""
    low: float | None
    high: float | None
    p_value: float
    p_adjusted: float
    """Holm's, over everything that was compared between these two models."""
    n: int
    gained: int | None = None
    """Of rates: items that were wrong before and are right after."""
    lost: int | None = None


Rival = Literal["predecessor", "best before"]


class Loss(Comparison):
    """Where a version of an adapter is worse than one before it, and surely so.

    `p_adjusted` is Holm's over everything that was compared in the history.
    """

    rival: Rival


class History(Data):
    """Models that are one adapter's versions, in their order, and what they lost."""

    versions: list[str]
    first: str | None
    """The first version that lost something."""
    losses: list[Loss]


class BaseEntry(Data):
    """The base model that everything was measured on."""

    name: str
    fingerprint: str


class ModelEntry(Data):
    """A model under test; the base has neither digest nor manifest."""

    name: str
    """Unique in the report: "base", or the adapter's folder."""
    path: str | None = None
    """The adapter's folder as it was given; its training history stands there, if anywhere."""
    digest: str | None = None
    """Of the files that were measured (`adapters.artifact.artifact_digest`)."""
    served_form: bool = False
    """Whether that was the form that a registry would serve, as a gate demands."""
    manifest: Manifest | None = None
    figures: dict[str, Figure] = Field({})
    """By dotted name: "preference.accuracy", "retention.facts", "drift.kl" ..."""
    verdict: Verdict | None = None


class Source(Data):
    """A file of items, by what it was given as, e.g. "pairs"."""

    name: str
    digest: str
    n: int


class Report(Data):
    """Everything that an evaluation found."""

    schema_version: Literal[1] = 1
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    base: BaseEntry
    models: list[ModelEntry]
    """The base first; then those to compare with, then those under test, as they were given."""
    items: Items = Items()
    comparisons: list[Comparison] = Field([])
    history: History | None = None
    """Where the models are versions of one adapter."""
    sources: dict[str, Source] = Field({})
    settings: dict[str, Any] = Field({})
    """Every setting of the evaluation that its figures depend on."""
    seed: int
    versions: dict[str, str] = Field({})
    """Of the packages that figures may depend on."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = self.names
        if len(set(names)) < len(names):
            raise ValueError(f"two models have one name: {names}")
        return self

    @property
    def names(self) -> list[str]:
        return [model.name for model in self.models]

    def model(self, name: str) -> ModelEntry:
        """Raises KeyError for a name that is not there."""
        return {model.name: model for model in self.models}[name]

    def compared(self, after: str, before: str = BASE) -> dict[str, Comparison]:
        """The comparisons between two models, by figure."""
        return {c.figure: c for c in self.comparisons if (c.before, c.after) == (before, after)}


def write_report(report: Report, folder: Path) -> Path:
    """`report.json` in `folder`, whole or not at all; its path.

    Raises OSError, or the domain's StoreError for a disk that fails while it is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / REPORT_FILE
    draft = path.with_name(f".{REPORT_FILE}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        write_durably(draft, [report.model_dump_json(indent=1).encode(), b"\n"])
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def read_report(path: Path) -> Report:
    """A report from its file, or from the folder that it is in. Raises DataError."""
    file = path / REPORT_FILE if path.is_dir() else path
    try:
        return Report.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        raise DataError(f"There is no report {file}; make one with `bapo eval --report`.") from None
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        where = ".".join(map(str, found["loc"])) or "its content"
        raise DataError(f"{file} is no evaluation's report: {where}: {found['msg']}.") from None
