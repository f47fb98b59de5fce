"""The versions that a history is about: of one adapter in a registry, or folders in their order.

Owns where they come from. Refuses asking and comparing them (`evaluate.py`, `regression.py`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from adapters.artifact import Manifest
from adapters.terminal import Where
from adapters.versioned import versions_of
from training.evaluation.evaluate import Candidate
from training.evaluation.material import compared
from training.evaluation.results import Report


@contextmanager
def history_of(
    given: Sequence[str], where: Where
) -> Iterator[tuple[list[Candidate], dict[str, Manifest | None]]]:
    """The versions, oldest first, and the manifests that the registry kept apart from the files.

    One name that is no folder is an adapter's in the registry. Raises ConfigError for a folder
    that is not there, the adapters' errors for what the registry does not have.
    """
    if len(given) > 1 or Path(given[0]).is_dir():
        yield compared([Path(folder) for folder in given], ())[0], {}
        return
    with versions_of(where, given[0]) as found:
        versions = [Candidate(v.name, v.folder, v.folder, served_form=True) for v in found]
        yield versions, {version.name: version.manifest for version in found}


def with_manifests(report: Report, manifests: dict[str, Manifest | None]) -> Report:
    """The report with what a registry knows of its versions, and not where they happened to lie."""
    for model in report.models:
        if model.name in manifests:
            model.manifest, model.path = manifests[model.name], None
    return report
