"""What `bapo eval` leaves behind: the report in a folder, and on the terminal.

Owns the order of things there. Refuses figures, tables (`report.py`) and the page (`page/`).
"""

from pathlib import Path

from rich.console import Console

from training.evaluation.page import write_page
from training.evaluation.page.versions import told_of, verdict
from training.evaluation.report import as_tables
from training.evaluation.results import ModelEntry, Report, write_report


def keep(found: Report, folder: Path) -> None:
    """report.json and report.html in `folder`. Raises StoreError, OSError."""
    write_report(found, folder)
    write_page(found, folder)


def show(found: Report, folder: Path | None, *, as_json: bool) -> None:
    """The report on the terminal, or as JSON on stdout; `folder` is where it was kept."""
    if as_json:
        print(found.model_dump_json(indent=2))
        return
    console = Console()
    console.print(as_tables(found))
    if found.history is not None:
        console.print(verdict(found), style="red" if found.history.losses else None, markup=False)
        for loss in found.history.losses:
            console.print(f"  {told_of(loss, found)}", markup=False, soft_wrap=True)
    for model in found.models:
        _show_verdict(console, model)
    if folder is not None:
        console.print(f"written: {folder}", markup=False, soft_wrap=True)


def _show_verdict(console: Console, model: ModelEntry) -> None:
    if model.verdict is None:
        return
    for line in model.verdict.lines:
        console.print(
            f"{'passed' if line.passed else 'FAILED'}  {line.threshold}: {line.measured}",
            style=None if line.passed else "red",
            markup=False,
            soft_wrap=True,
        )
    signed = f"{model.name}: signed with {model.verdict.key}"
    console.print(signed, markup=False, soft_wrap=True)
