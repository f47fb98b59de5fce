"""The page itself: what the template is given, and the file.

Owns the order of sections and the sentences over them. Refuses figures and pictures, which are made
beside it. The template escapes everything but the pictures and the style sheet, which are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from adapters.files import write_durably
from training.evaluation.items import BASE
from training.evaluation.page.changes import forest
from training.evaluation.page.curves import curves, read_history
from training.evaluation.page.drawing import SERIES, Picture
from training.evaluation.page.examples import Example, Fates, fates, rewordings
from training.evaluation.page.histograms import histograms
from training.evaluation.page.pareto import pareto
from training.evaluation.page.scoreboard import changes, scoreboard
from training.evaluation.page.versions import course, told_of, verdict
from training.evaluation.page.wording import difference, p_value, sentence, title_of
from training.evaluation.results import ModelEntry, Report

PAGE_FILE = "report.html"

SUMMARISED = ("preference.winrate", "preference.accuracy", "preference.likelihood", "drift.kl")


@dataclass(frozen=True)
class Side:
    """One model against another, in sentences and examples."""

    after: str
    before: str
    sentences: list[str]
    fates: list[Fates]
    rewordings: list[Example]


def render(report: Report) -> str:
    """The page as HTML. Histories of training are read from beside the adapters."""
    environment = Environment(
        loader=PackageLoader("training.evaluation.page", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = environment.get_template("report.css").render(series=range(len(SERIES)))
    return environment.get_template("report.html").render(
        report=report,
        style=Markup(style),  # noqa: S704 - the project's own file
        drawn=lambda picture: Markup(picture.svg),  # noqa: S704 - drawn by matplotlib, which escapes
        scoreboard=scoreboard(report),
        changes=changes(report),
        pictures=_pictures(report),
        sides=[_side(report, *names) for names in _compared(report)],
        verdict=verdict(report),
        losses=[told_of(loss, report) for loss in report.history.losses] if report.history else [],
        columns=[_column(model) for model in report.models],
    )


def write_page(report: Report, folder: Path) -> Path:
    """`report.html` in `folder`, whole or not at all; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PAGE_FILE
    draft = path.with_name(f".{PAGE_FILE}.draft")
    try:
        write_durably(draft, [render(report).encode("utf-8", "replace")])
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def _pictures(report: Report) -> dict[str, Picture]:
    histories = [
        found
        for model in report.models
        if model.path and (found := read_history(model.name, Path(model.path)))
    ]
    drawn = {
        "Preference against retention": pareto(report),
        "Versions": course(report),
        "Changes": forest(report),
        "Drift": histograms(report),
        "Training": curves(histories),
    }
    return {title: picture for title, picture in drawn.items() if picture is not None}


def _compared(report: Report) -> list[tuple[str, str]]:
    return list(dict.fromkeys((c.after, c.before) for c in report.comparisons))


def _side(report: Report, after: str, before: str) -> Side:
    return Side(
        after,
        before,
        list(_sentences(report, after, before)),
        fates(report, after, before),
        rewordings(report, after, before),
    )


def _sentences(report: Report, after: str, before: str) -> Sequence[str]:
    """What matters most about a model, with intervals."""
    figures = report.model(after).figures
    said = [
        f"{title_of(name)}: {sentence(figures[name])}." for name in SUMMARISED if name in figures
    ]
    for name, change in report.compared(after, before).items():
        if change.gained is not None and not name.startswith(("preference.", "drift.")):
            shown, ends = difference(change, "rate")
            said.append(
                f"{title_of(name)}: {change.lost} of {change.n} lost, {change.gained} gained,"
                f" {shown} {ends}, p {p_value(change.p_adjusted)}."
            )
    return said


def _column(model: ModelEntry) -> dict[str, str]:
    """What made a model, for the table at the end."""
    if model.name == BASE or model.manifest is None:
        return {"digest": model.digest or ""}
    made = model.manifest
    shaping = {name: f"{value}" for name, value in sorted(made.hyperparameters.items())}
    return {
        "digest": model.digest or "",
        "method": made.method,
        "pairs": f"{made.data.get('pairs', '')}",
        "trained": f"{made.created:%Y-%m-%d %H:%M} UTC",
        "seed": f"{made.seed}",
        **shaping,
    }
