"""One evaluation: the base and every adapter are asked the same things, in turn.

Owns the order of work and what is written down about it. Refuses what is asked (each file beside
this one fills its own kind of item) and what follows from the answers (`figures.py`). The base
comes first, since what is measured against it needs its answers.
"""

import importlib.metadata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from adapters.artifact import artifact_digest, read_manifest
from training.errors import ModelError
from training.evaluation.figures import complete
from training.evaluation.preference import score_pair_items
from training.evaluation.results import BASE, BaseEntry, Items, ModelEntry, Report, Source
from training.evaluation.retention import ask_questions
from training.model import ResidentBase, adapted
from training.progress import counting

PACKAGES = ("bapo-server", "torch", "transformers", "peft", "lm_eval")


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
    """Longest greedy answer to a question."""

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "seed"}


@dataclass(frozen=True)
class Asked:
    """A model that is being asked: its name, itself, and the tokenizer."""

    name: str
    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class Evaluation:
    """What is asked of whom. `evaluate` fills `items` with what they make of it."""

    items: Items
    candidates: Sequence[Candidate] = ()
    against: Sequence[str] = (BASE,)
    """Names of the models that the others are compared with."""
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
    entries = [_entry(candidate) for candidate in wanted.candidates]
    names = {BASE: None, **{c.name: c.folder for c in wanted.candidates}}
    for name, folder in names.items():
        with _wearing(base, folder) as model:
            try:
                _ask(Asked(name, model, base.tokenizer), wanted, progress=progress)
            except ValidationError:  # NaN is no figure of any item
                raise ModelError(
                    f"{name} gives log-probabilities that are not finite numbers: its weights"
                    " are broken."
                ) from None
    report = Report(
        base=BaseEntry(name=base.info.name, fingerprint=base.info.fingerprint),
        models=[ModelEntry(name=BASE), *entries],
        items=wanted.items,
        sources=wanted.sources,
        settings=wanted.settings.as_json(),
        seed=wanted.settings.seed,
        versions=_versions(),
    )
    return complete(report, wanted.against)


def _ask(asked: Asked, wanted: Evaluation, *, progress: bool) -> None:
    """Every measure that there are items for, each with its own bar."""
    items, settings = wanted.items, wanted.settings

    def bar(label: str, total: int) -> Any:
        return counting(f"{asked.name}: {label}" if progress else None, total)

    if items.pairs:
        with bar("pairs", len(items.pairs)) as tick:
            score_pair_items(asked.model, asked.tokenizer, items.pairs, asked.name, tick=tick)
    if items.questions:
        with bar("questions", len(items.questions)) as tick:
            ask_questions(
                asked.model,
                asked.tokenizer,
                items.questions,
                asked.name,
                max_new_tokens=settings.max_new_tokens,
                tick=tick,
            )


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


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
