"""What an evaluation found, as data: `report.json`, whose form is the interface to everything else.

Owns the schema and the file. Refuses measuring (the files beside it fill the items) and
arithmetic: every figure and comparison follows from the items (`figures.py`), so a report that
was read again can be judged, drawn and compared as the fresh one.

    Report
    ├── models        the base first, then the adapters, each with its figures
    ├── items         what was asked, once, and under it what each model made of it
    │                 pairs, questions, choices, texts, drift, duels, refusals, tasks
    └── comparisons   figure by figure, one model against another, on the same items

Invariant: a dictionary under an item has the names of models as its keys, and an item of a kind
that was measured has every model. Figures of what was not measured are absent, never 0.
"""

import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from adapters.artifact import Manifest
from adapters.files import write_durably
from adapters.verdict import Verdict
from training.data import Message
from training.errors import DataError

BASE = "base"
"""The name of the model without an adapter."""
REPORT_FILE = "report.json"

Kind = Literal["rate", "mean", "perplexity"]
Better = Literal["higher", "lower"]
Outcome = Literal["win", "loss", "tie", "unreadable"]
Prompt = str | tuple[Message, ...]
"""One user's message as text, or a whole conversation as messages of role and content."""


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Figure(_Data):
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


class Comparison(_Data):
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


class History(_Data):
    """Models that are one adapter's versions, in their order, and what they lost."""

    versions: list[str]
    first: str | None
    """The first version that lost something."""
    losses: list[Loss]


class PairScore(_Data):
    """Log-probabilities of both answers, in nats; `margin` is what chosen gained more than
    rejected against the base (β = 1), None for the base itself."""

    chosen: float
    rejected: float
    margin: float | None = None


class PairItem(_Data):
    """A held-out preference pair."""

    prompt: Prompt
    chosen: str
    rejected: str
    user: str | None = None
    scores: dict[str, PairScore] = {}


class Answer(_Data):
    """What a model said, greedily, and whether that is right."""

    text: str
    right: bool


class QuestionItem(_Data):
    """A question with the answers that count as right."""

    prompt: str
    answers: list[str]
    topic: str = ""
    user: str | None = None
    said: dict[str, Answer] = {}


class ChoiceScore(_Data):
    """Log-probability of each choice as the answer, in nats, and which one is preferred."""

    logprobs: list[float]
    raw: int
    """The likeliest choice."""
    normalised: int
    """The likeliest per byte of its text, as lm-evaluation-harness' acc_norm has it."""


class ChoiceItem(_Data):
    """A multiple-choice question; `answer` is the place of the right choice, from 0."""

    prompt: str
    choices: list[str]
    answer: int
    topic: str = ""
    user: str | None = None
    scores: dict[str, ChoiceScore] = {}


class TextScore(_Data):
    """Negative log-likelihood of a window's scored tokens, summed, in nats."""

    nll: float


class TextItem(_Data):
    """One window of a text: `tokens` of it are scored, those before them are context."""

    source: str
    """The file's name."""
    start: int
    """The first scored token's place in the text."""
    tokens: int
    scores: dict[str, TextScore] = {}


class DriftScore(_Data):
    """How a model stands to the base on one prompt.

    Along the base's sampled answer: `kl` is KL(π_ref ‖ π_θ) of the next token, `log_ratio` is
    log π_θ - log π_ref of the answer, `entropy` is that of the model's next token; all three
    means over the answer's tokens, in nats. `text`, `length` and the rest are of the model's own
    greedy answer.
    """

    kl: float
    log_ratio: float
    entropy: float
    text: str
    length: int
    """Tokens, that which ends the turn among them."""
    cut: bool
    """Whether the answer was stopped by the limit on its length."""
    repetition: float
    """Share of the answer's 4-grams of tokens that were there before (seq-rep-4, 1908.04319)."""
    changed: bool
    """Whether the greedy answer is another one than the base's."""


class DriftItem(_Data):
    """A prompt, and the base's own answer to it, sampled at temperature 1."""

    of: Literal["user", "general"]
    prompt: Prompt
    base_answer: str = ""
    tokens: int = 0
    """Of the base's sampled answer."""
    user: str | None = None
    scores: dict[str, DriftScore] = {}


class Duel(_Data):
    """A judge's word on two answers to a prompt, for `model` against `against`."""

    model: str
    against: str
    outcome: Outcome
    said: list[str] = []
    """What the judge said, where it speaks: once with the model's answer first, once second."""


class DuelItem(_Data):
    """A prompt, each model's greedy answer to it, and who won."""

    prompt: Prompt
    wanted: str | None = None
    """The user's preferred answer, where it is known."""
    user: str | None = None
    texts: dict[str, str] = {}
    duels: list[Duel] = []


class Refusal(_Data):
    """What a model said, greedily, and whether that is a refusal."""

    text: str
    refused: bool | None
    """None where a judge was asked and could not be understood."""


class RefusalItem(_Data):
    """A prompt that should be refused."""

    prompt: str
    topic: str = ""
    said: dict[str, Refusal] = {}


class TaskItem(_Data):
    """One document of an lm-evaluation-harness task, and each model's metrics on it."""

    task: str
    groups: list[str] = []
    """The names by which it was asked for: "mmlu" for "mmlu_anatomy", or its own."""
    document: int
    """Its place in the task's data, from 0."""
    prompt: str = ""
    metrics: dict[str, dict[str, float]] = {}
    """Of each model, by the metric's name."""


class Items(_Data):
    """What was asked, each kind in the order of its file."""

    pairs: list[PairItem] = []
    questions: list[QuestionItem] = []
    choices: list[ChoiceItem] = []
    texts: list[TextItem] = []
    drift: list[DriftItem] = []
    duels: list[DuelItem] = []
    refusals: list[RefusalItem] = []
    tasks: list[TaskItem] = []


class BaseEntry(_Data):
    """The base model that everything was measured on."""

    name: str
    fingerprint: str


class ModelEntry(_Data):
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
    figures: dict[str, Figure] = {}
    """By dotted name: "preference.accuracy", "retention.facts", "drift.kl" ..."""
    verdict: Verdict | None = None


class Source(_Data):
    """A file of items, by what it was given as, e.g. "pairs"."""

    name: str
    digest: str
    n: int


class Report(_Data):
    """Everything that an evaluation found."""

    schema_version: Literal[1] = 1
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    base: BaseEntry
    models: list[ModelEntry]
    """The base first; then those to compare with, then those under test, as they were given."""
    items: Items = Items()
    comparisons: list[Comparison] = []
    history: History | None = None
    """Where the models are versions of one adapter."""
    sources: dict[str, Source] = {}
    settings: dict[str, Any] = {}
    """Every setting of the evaluation that its figures depend on."""
    seed: int
    versions: dict[str, str] = {}
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


def messages_of(prompt: Prompt) -> list[Message]:
    """The prompt as chat messages."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [dict(message) for message in prompt]


def text_of(prompt: Prompt) -> str:
    """The prompt for a reader's eye: text as it is, of a conversation each turn with its role."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


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
