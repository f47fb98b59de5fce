"""The verb `bapo eval`.

Owns flags and what is shown. Refuses work: it gathers what is asked, makes one call and shows the
report. Torch is imported inside, so that help and wrong usage answer at once.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from adapters.terminal import Where, located
from training.cli import spoken_errors
from training.errors import ConfigError

if TYPE_CHECKING:
    from adapters.artifact import Manifest
    from training.evaluation.evaluate import Candidate, Evaluation
    from training.evaluation.gate import Thresholds
    from training.evaluation.results import Report
    from training.model import ResidentBase

evaluate = typer.Typer(add_completion=False)

ASKED, JUDGED, SHOWN = "What is asked", "The gate", "What comes out"


@evaluate.command()
@located
def _evaluate(
    where: Where,
    model: Annotated[str, typer.Option(help="Base model: a folder or a Hub name.")],
    adapter: Annotated[
        list[Path] | None, typer.Option(help="Adapter folder; several by repeating it.")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(help="What they are compared with: base (the default) or adapter folders."),
    ] = None,
    history: Annotated[
        list[str] | None,
        typer.Option(
            help="An adapter of the registry, all its versions; or folders in order, by repeating"
            " it: which one lost something? Then the end is 1."
        ),
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(help="Preference pairs that were not trained on.", rich_help_panel=ASKED),
    ] = None,
    facts: Annotated[
        str | None, typer.Option(help="Questions with answers, JSONL.", rich_help_panel=ASKED)
    ] = None,
    choices: Annotated[
        str | None,
        typer.Option(
            help="Multiple choice: JSONL, prompt, choices, answer.", rich_help_panel=ASKED
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(help="A text for perplexity; several by repeating it.", rich_help_panel=ASKED),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="The user's prompts, for drift; pairs will do.", rich_help_panel=ASKED),
    ] = None,
    general_prompts: Annotated[
        Path | None,
        typer.Option(help="Prompts that are nobody's, for drift.", rich_help_panel=ASKED),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="The first so many of each file.", min=1)
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens a text's window moves on by.", min=1)
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, tokens.", min=1)] = 48,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 42,
    gate: Annotated[
        Path | None,
        typer.Option(
            help="Thresholds, YAML: judge, sign the verdict, end with 1 if it fails.",
            rich_help_panel=JUDGED,
        ),
    ] = None,
    gate_key: Annotated[
        Path | None,
        typer.Option(
            help="PEM file of the signing key; default: this user's own.", rich_help_panel=JUDGED
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Folder for report.json and report.html.", rich_help_panel=SHOWN),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The report on stdout.", rich_help_panel=SHOWN)
    ] = False,
) -> None:
    """Is an adapter good, and what did it forget? Base and adapters side by side.

    bapo eval --model models/pocket --adapter runs/pirate --pairs heldout.jsonl --facts facts.jsonl
    """
    with spoken_errors(), ExitStack() as held:
        if gate is not None and not adapter:
            raise ConfigError("--gate judges an adapter: give --adapter.")
        if history and (adapter or against):
            raise ConfigError("--history brings its own adapters: leave out --adapter, --against.")
        from training.evaluation.evaluate import Evaluation, Settings, evaluate
        from training.evaluation.gate import load_thresholds
        from training.evaluation.material import Files, compared, gather
        from training.evaluation.regression import with_history
        from training.evaluation.versions import history_of, with_manifests
        from training.model import load_base

        thresholds = load_thresholds(gate) if gate else None
        files = Files(pairs, facts, choices, text or (), prompts, general_prompts)
        if not files.any:
            raise ConfigError("Nothing to evaluate on: give --pairs, --facts or another file.")
        items, texts, sources = gather(files, limit=limit)
        settings = Settings(seed=seed, max_new_tokens=max_new_tokens, stride=stride)
        candidates, names = compared(adapter or (), against or ())
        manifests: dict[str, Manifest | None] = {}
        if history:
            candidates, manifests = held.enter_context(history_of(history, where))
        base = load_base(model)
        with _as_judged(candidates, base, gated=gate is not None) as measured:
            wanted = Evaluation(items, texts, measured, names, settings, sources)
            found = evaluate(base, wanted, progress=True)
            if gate is not None and thresholds is not None:
                _judge(found, wanted, thresholds, base, gate, gate_key)
        if history:
            found = with_history(with_manifests(found, manifests))
        _show(found, report, as_json=as_json)
        if found.history is not None and found.history.losses:
            raise typer.Exit(1)
        if any(m.verdict is not None and not m.verdict.passed for m in found.models):
            raise typer.Exit(1)


@contextmanager
def _as_judged(
    candidates: "Sequence[Candidate]", base: "ResidentBase", *, gated: bool
) -> "Iterator[list[Candidate]]":
    """The adapters as they are; for a gate in the form in which they would be served."""
    from dataclasses import replace

    from training.evaluation.gate import served_form

    with ExitStack() as stack:
        yield [
            replace(
                candidate,
                folder=stack.enter_context(served_form(candidate.folder, base.info)),
                served_form=True,
            )
            if gated
            else candidate
            for candidate in candidates
        ]


def _judge(
    found: "Report",
    wanted: "Evaluation",
    thresholds: "Thresholds",
    base: "ResidentBase",
    gate: Path,
    gate_key: Path | None,
) -> None:
    """A signed verdict on each adapter under test, in its manifest and in the report."""
    from adapters.gate import KEY_FILE, signing_key
    from training.evaluation.gate import judge, write_verdict

    key = signing_key(gate_key or KEY_FILE)
    for one in wanted.candidates:
        if one.name not in wanted.against:
            lines = judge(thresholds, found.items, one.name)
            verdict = write_verdict(one.given, one.folder, base.info, lines, gate, key)
            found.model(one.name).verdict = verdict


def _show(found: "Report", folder: Path | None, *, as_json: bool) -> None:
    """What was found on the terminal or as JSON, and kept where that is wanted."""
    from training.evaluation.page import write_page
    from training.evaluation.page.versions import told_of, verdict
    from training.evaluation.report import as_tables
    from training.evaluation.results import write_report

    if folder is not None:
        write_report(found, folder)
        write_page(found, folder)
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
        if model.verdict is None:
            continue
        for line in model.verdict.lines:
            console.print(
                f"{'passed' if line.passed else 'FAILED'}  {line.threshold}: {line.measured}",
                style=None if line.passed else "red",
                markup=False,
                soft_wrap=True,
            )
        console.print(f"{model.name}: signed with {model.verdict.key}", soft_wrap=True)
    if folder is not None:
        console.print(f"written: {folder}", soft_wrap=True)
