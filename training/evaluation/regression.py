"""An adapter's versions in their order: which one lost something, and which was the first.

Owns the comparisons that a history needs: each version with its predecessor, and with the best
before it in each figure, all p-values adjusted together (Holm), since a long history is looked at
many times. Refuses measuring, and figures that have no good direction or only say how far a
version is from the base: going further is not losing.

The best before is chosen by the same items, so it is a little luckier than it is good; Holm over
everything that was compared leaves room for that, and a loss must still be surer than 5 %.
"""

from collections.abc import Iterator, Sequence

from adapters.statistics import holm
from training.evaluation.figures import compare
from training.evaluation.items import BASE
from training.evaluation.results import Comparison, Figure, History, Loss, Report, Rival

SURE = 0.05
NO_LOSS = ("drift.", "preference.unreadable")


def with_history(report: Report) -> Report:
    """The report with its models, in their order, compared as versions of one adapter."""
    versions = [name for name in report.names if name != BASE]
    steps = list(zip([BASE, *versions], versions, strict=False))
    report.comparisons = [
        c for before, after in steps for c in compare(report.items, before, after)
    ]
    losses = list(_losses(report, versions))
    first = losses[0].after if losses else None
    report.history = History(versions=versions, first=first, losses=losses)
    return report


def _losses(report: Report, versions: Sequence[str]) -> Iterator[Loss]:
    made = [
        (comparison, rival)
        for place, after in enumerate(versions[1:], start=1)
        for comparison, rival in _of_version(report, versions[:place], after)
    ]
    for (c, rival), p in zip(made, holm([c.p_value for c, _ in made]), strict=True):
        if p < SURE and _fell(report, c):
            yield Loss(**c.model_dump() | {"p_adjusted": p}, rival=rival)


def _of_version(
    report: Report, earlier: Sequence[str], after: str
) -> Iterator[tuple[Comparison, Rival]]:
    """The comparisons of one version, each figure with one or two of those before it."""
    found = {before: compare(report.items, before, after) for before in earlier}
    for comparison in found[earlier[-1]]:
        name = comparison.figure
        if not _can_be_lost(report, comparison):
            continue
        yield comparison, "predecessor"
        best = max(earlier, key=lambda version: _goodness(report.model(version).figures[name]))
        if best != earlier[-1]:
            yield next(c for c in found[best] if c.figure == name), "best before"


def _can_be_lost(report: Report, comparison: Comparison) -> bool:
    figure = report.model(comparison.after).figures.get(comparison.figure)
    known = figure is not None and figure.better is not None
    return known and not comparison.figure.startswith(NO_LOSS)


def _fell(report: Report, comparison: Comparison) -> bool:
    figure = report.model(comparison.after).figures[comparison.figure]
    return (comparison.difference < 0) == (figure.better == "higher") and comparison.difference != 0


def _goodness(figure: Figure) -> float:
    return figure.value if figure.better == "higher" else -figure.value
