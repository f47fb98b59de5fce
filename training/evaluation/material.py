"""What an evaluation asks, gathered from files, and whom it asks.

Owns which reader is for which flag, and what is remembered of a file. Refuses the formats; they
are the measures'. Everything is read, and everything wrong is said, before a model is loaded.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from training.errors import ConfigError
from training.evaluation.choices import load_choices
from training.evaluation.drift import load_prompts
from training.evaluation.evaluate import Candidate, candidates_of
from training.evaluation.items import BASE, Items
from training.evaluation.options import Files
from training.evaluation.perplexity import Text, load_text
from training.evaluation.preference import load_pair_items
from training.evaluation.results import Source
from training.evaluation.retention import item_of, load_questions
from training.evaluation.safety import load_refusals

T = TypeVar("T", bound=BaseModel)
Sources = dict[str, Source]


def gather(files: Files, *, limit: int | None = None) -> tuple[Items, list[Text], Sources]:
    """The items of every file that was given (the first `limit` of each), the texts, the sources.

    Raises DataError.
    """
    sources: Sources = {}

    def read(flag: str, source: str | Path | None, reader: Callable[[Any], list[T]]) -> list[T]:
        if source is None:
            return []
        found = reader(source)[:limit]
        sources[flag] = Source(name=Path(source).name, digest=_digest(found), n=len(found))
        return found

    texts = [load_text(path) for path in files.text or ()]
    for text in texts:
        sources[f"text {text.name}"] = Source(name=text.name, digest=_hash(text.content), n=1)
    items = Items(
        pairs=read("pairs", files.pairs, load_pair_items),
        questions=read("facts", files.facts, lambda path: list(map(item_of, load_questions(path)))),
        choices=read("choices", files.choices, load_choices),
        drift=[
            *read("prompts", files.prompts, partial(load_prompts, of="user")),
            *read("general prompts", files.general_prompts, partial(load_prompts, of="general")),
        ],
        refusals=read("refusals", files.refusals, load_refusals),
    )
    return items, texts, sources


def compared(
    adapters: Sequence[Path], against: Sequence[str]
) -> tuple[list[Candidate], tuple[str, ...]]:
    """All adapters that are asked, those to compare with first; and the names of the latter.

    Raises ConfigError for a folder that is not there.
    """
    folders = [Path(one) for one in against if one != BASE]
    for folder in (*folders, *adapters):
        if not folder.is_dir():
            raise ConfigError(f"There is no adapter folder {folder}.")
    candidates = candidates_of([*folders, *adapters])
    others = {folder.resolve() for folder in folders}
    names = tuple(one.name for one in candidates if one.given.resolve() in others)
    return candidates, names if against and BASE not in against else (BASE, *names)


def _digest(items: Sequence[BaseModel]) -> str:
    """The identity of what is asked; the order counts."""
    return _hash("\n".join(item.model_dump_json() for item in items))


def _hash(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
