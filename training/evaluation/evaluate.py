"""One evaluation: the base and every adapter are asked the same things, in turn.

Owns the order of work and what is written down about it. Refuses what is asked (each file beside
this one fills its own kind of item) and what follows from the answers (`figures.py`). The base
comes first, since what is measured against it needs its answers.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from adapters.artifact import artifact_digest, read_manifest
from training.errors import ModelError
from training.evaluation.asked import Asked, Measure
from training.evaluation.choices import score_choices
from training.evaluation.drift import Drift
from training.evaluation.duels import answer_duels, judge_duels
from training.evaluation.figures import complete
from training.evaluation.items import BASE, Items
from training.evaluation.judges import Judge
from training.evaluation.packages import package_versions
from training.evaluation.perplexity import Perplexity, Text
from training.evaluation.preference import score_pair_items
from training.evaluation.results import BaseEntry, ModelEntry, Report, Source
from training.evaluation.retention import ask_questions
from training.evaluation.safety import Detector, ask_refusals, by_patterns
from training.evaluation.tasks import Tasks, TaskSettings
from training.model import ResidentBase, adapted
from training.progress import counting


@dataclass(frozen=True)
class Candidate:
    """An adapter under test: its name in the report, its folder, and where that came from."""

    name: str
    folder: Path
    given: Path
    served_form: bool = False


@dataclass(frozen=True)
class Settings:
    """What the figures depend on beside models and items."""

    seed: int = 42
    max_new_tokens: int = 48
    """Longest answer, in tokens."""
    judge: str | None = None
    refusals_by: str | None = None
    stride: int | None = None
    """Tokens by which a text's window moves on; by default half of what the model can read."""

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "seed"}


@dataclass(frozen=True)
class Evaluation:
    """What is asked of whom. `evaluate` fills `items` with what they make of it."""

    items: Items
    texts: Sequence[Text] = ()
    """Texts for perplexity; only the tokenizer can make items of them."""
    candidates: Sequence[Candidate] = ()
    against: Sequence[str] = (BASE,)
    """Names of the models that the others are compared with."""
    judge: Judge | None = None
    """Who decides the items' duels."""
    detector: Detector = field(default_factory=by_patterns)
    """What counts as a refusal."""
    tasks: TaskSettings | None = None
    """Tasks of lm-evaluation-harness."""
    settings: Settings = Settings()
    sources: dict[str, Source] = field(default_factory=dict)


def candidates_of(folders: Sequence[Path]) -> list[Candidate]:
    """A name for each adapter: its folder's, with as many parents as tell them apart."""
    paths = list(dict.fromkeys(folder.resolve() for folder in folders))
    names = [path.name for path in paths]
    depth = 1
    while (len(set(names)) < len(names) or BASE in names) and depth < 20:
        depth += 1
        names = ["/".join(path.parts[-depth:]) for path in paths]
    given = {folder.resolve(): folder for folder in folders}
    return [Candidate(n, p, given[p]) for n, p in zip(names, paths, strict=True)]


def evaluate(base: ResidentBase, wanted: Evaluation, *, progress: bool = False) -> Report:
    """Ask the base and each candidate everything; the report. `progress` shows bars.

    Raises DataError for an item that cannot be asked, ModelError for an adapter that does not fit.
    """
    tasks = wanted.tasks
    entries = [_entry(candidate) for candidate in wanted.candidates]
    names = {BASE: None, **{c.name: c.folder for c in wanted.candidates}}
    measures = _measures(wanted)
    for name, folder in names.items():
        with _wearing(base, folder) as model:
            _ask(Asked(name, model, base.tokenizer), measures, progress=progress)
    _judge(wanted, progress=progress)
    report = Report(
        base=BaseEntry(name=base.info.name, fingerprint=base.info.fingerprint),
        models=[ModelEntry(name=BASE), *entries],
        items=wanted.items,
        sources=wanted.sources,
        settings=wanted.settings.as_json() | ({} if tasks is None else tasks.as_json()),
        seed=wanted.settings.seed,
        versions=package_versions(),
    )
    return complete(report, wanted.against)


def _measures(wanted: Evaluation) -> list[Measure]:
    """Every measure that there are items for."""
    items, settings = wanted.items, wanted.settings
    tokens, stride = settings.max_new_tokens, settings.stride
    drift = Drift(items.drift, seed=settings.seed, max_new_tokens=tokens)
    every = [
        Measure("pairs", len(items.pairs), partial(score_pair_items, items.pairs)),
        Measure(
            "questions",
            len(items.questions),
            partial(ask_questions, items.questions, max_new_tokens=tokens),
        ),
        Measure("choices", len(items.choices), partial(score_choices, items.choices)),
        Measure("texts", len(wanted.texts), Perplexity(wanted.texts, items.texts, stride=stride)),
        Measure("drift", len(items.drift), drift),
        Measure(
            "answers",
            len(items.duels),
            partial(answer_duels, items.duels, max_new_tokens=tokens),
        ),
        Measure(
            "refusals",
            len(items.refusals),
            partial(ask_refusals, items.refusals, detector=wanted.detector, max_new_tokens=tokens),
        ),
    ]
    if wanted.tasks is not None:
        names = wanted.tasks.names
        every.append(Measure("tasks", len(names), Tasks(wanted.tasks, items.tasks)))
    return [measure for measure in every if measure.total]


def _ask(asked: Asked, measures: Sequence[Measure], *, progress: bool) -> None:
    """One measure after the other, each with its own bar. Raises ModelError."""
    for measure in measures:
        label = f"{asked.name}: {measure.label}" if progress else None
        try:
            with counting(label, measure.total) as tick:
                measure.ask(asked, tick)
        except ValidationError:  # NaN is no figure of any item
            raise ModelError(
                f"{asked.name} gives log-probabilities that are not finite numbers: its weights"
                " are broken."
            ) from None


def _judge(wanted: Evaluation, *, progress: bool) -> None:
    """Every duel of a model under test with each that it is compared with."""
    if wanted.judge is None:
        return
    duels = wanted.items.duels
    for candidate in wanted.candidates:
        for against in wanted.against:
            if candidate.name in wanted.against:
                continue
            label = f"{candidate.name} against {against}" if progress else None
            with counting(label, len(duels)) as tick:
                judge_duels(duels, candidate.name, against, wanted.judge, tick)


@contextmanager
def _wearing(base: ResidentBase, folder: Path | None) -> Iterator[torch.nn.Module]:
    if folder is None:
        yield base.model
        return
    with adapted(base, folder) as model:
        yield model


def _entry(candidate: Candidate) -> ModelEntry:
    return ModelEntry(
        name=candidate.name,
        path=str(candidate.given),
        digest=artifact_digest(candidate.folder),
        served_form=candidate.served_form,
        manifest=read_manifest(candidate.given),
    )
