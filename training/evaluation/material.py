"""What an evaluation asks, gathered from files, and whom it asks.

Owns which reader is for which flag, and what is remembered of a file. Refuses the formats; they
are the measures'. Everything is read, and everything wrong is said, before a model is loaded.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from training.errors import ConfigError
from training.evaluation.evaluate import Candidate, candidates_of
from training.evaluation.preference import load_pair_items
from training.evaluation.results import BASE, Items, Source
from training.evaluation.retention import item_of, load_questions


def gather(
    *, pairs: str | None = None, facts: str | None = None
) -> tuple[Items, dict[str, Source]]:
    """The items of every file that was given, and what each file was. Raises DataError."""
    sources: dict[str, Source] = {}

    def read(flag: str, source: str | None, reader: Callable[[str], list[Any]]) -> list[Any]:
        if source is None:
            return []
        found = reader(source)
        sources[flag] = Source(name=Path(source).name, digest=_digest(found), n=len(found))
        return found

    items = Items(
        pairs=read("pairs", pairs, load_pair_items),
        questions=read("facts", facts, lambda path: list(map(item_of, load_questions(path)))),
    )
    return items, sources


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


def _digest(items: Sequence[Any]) -> str:
    """The identity of what is asked; the order counts."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps(item.model_dump(mode="json"), sort_keys=True).encode())
    return f"sha256:{digest.hexdigest()}"
