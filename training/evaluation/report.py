"""An evaluation as a table in the terminal.

Owns how figures look there. Refuses to compute any: they stand in the report.
"""

from rich.console import Group, RenderableType
from rich.table import Table

from training.evaluation.results import Comparison, Figure, Report


def as_tables(report: Report) -> RenderableType:
    """One row a figure, one column a model; below it what changed between them."""
    return Group(_figures(report), *([_changes(report)] if report.comparisons else []))


def shown(figure: Figure) -> str:
    """The figure with its interval and n."""
    low, high = (_number(end, figure) for end in (figure.low, figure.high))
    return f"{_number(figure.value, figure)} [{low}, {high}] of {figure.n}"


def _figures(report: Report) -> Table:
    table = Table("figure", *report.names, caption="value [95 % interval] of n")
    every = reversed(report.models)  # the base lacks what is measured against it
    for name in dict.fromkeys(name for model in every for name in model.figures):
        found = [model.figures.get(name) for model in report.models]
        table.add_row(name, *("–" if figure is None else shown(figure) for figure in found))
    return table


def _changes(report: Report) -> Table:
    table = Table(
        "change", "of", "from", "difference", "p", "gained, lost",
        caption="difference [95 % interval] of n, paired; p after Holm",
    )  # fmt: skip
    for change in report.comparisons:
        flips = "" if change.gained is None else f"{change.gained}, {change.lost}"
        table.add_row(
            change.figure,
            change.after,
            change.before,
            _difference(report, change),
            f"{change.p_adjusted:.2g}",
            flips,
        )
    return table


def _difference(report: Report, change: Comparison) -> str:
    figure = report.model(change.after).figures.get(change.figure)
    rate = figure is not None and figure.kind == "rate"

    def number(value: float | None) -> str:
        if value is None:
            return "–"
        return f"{100 * value:+.1f}" if rate else f"{value:+.3g}"

    ends = f"[{number(change.low)}, {number(change.high)}]"
    return f"{number(change.difference)} {ends}{' points' if rate else ''} of {change.n}"


def _number(value: float | None, figure: Figure) -> str:
    if value is None:
        return "–"
    return f"{value:.1%}" if figure.kind == "rate" else f"{value:.3g}"
