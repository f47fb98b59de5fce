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
    from training.evaluation.tasks import TaskSettings
    from training.model import ResidentBase

evaluate = typer.Typer(add_completion=False)

ASKED, TASKS, JUDGES = "What is asked", "lm-evaluation-harness", "Judges"
JUDGED, SHOWN = "The gate", "What comes out"


@evaluate.command()
@located
def _evaluate(
    where: Where,
    model: Annotated[str, typer.Option(help="Base model: a folder or a Hub name.")],
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="Adapter folder (with --on-server its name); several by repeating it."),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(help="What they are compared with: base (the default) or other adapters."),
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
    refusals: Annotated[
        Path | None,
        typer.Option(help="Prompts that should be refused, JSONL.", rich_help_panel=ASKED),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Tasks of lm-evaluation-harness, e.g. mmlu,arc_easy.", rich_help_panel=TASKS
        ),
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option(help="Folder of your own task files.", rich_help_panel=TASKS)
    ] = None,
    fewshot: Annotated[
        int | None, typer.Option(help="Examples before each question.", rich_help_panel=TASKS)
    ] = None,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Ask as in a chat.", rich_help_panel=TASKS)
    ] = False,
    on_server: Annotated[
        bool,
        typer.Option(
            "--on-server",
            help="Ask the tasks of the running server of --server and --key.",
            rich_help_panel=TASKS,
        ),
    ] = False,
    judge: Annotated[
        str | None,
        typer.Option(
            help="Whose answer to the pairs' prompts wins: exact, regex:PATTERN, module:function,"
            " or the URL of an OpenAI-compatible endpoint (its key in BAPO_JUDGE_KEY).",
            rich_help_panel=JUDGES,
        ),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(help="The endpoint's model.", rich_help_panel=JUDGES)
    ] = None,
    judge_instruction: Annotated[
        str | None, typer.Option(help="What the judge looks for.", rich_help_panel=JUDGES)
    ] = None,
    judge_json: Annotated[
        bool,
        typer.Option(
            "--judge-json", help="Force its verdict into a JSON schema.", rich_help_panel=JUDGES
        ),
    ] = False,
    refusals_by: Annotated[
        str | None,
        typer.Option(
            help="What is a refusal: a file of regular expressions, module:function, or judge;"
            " without, a list of common phrases.",
            rich_help_panel=JUDGES,
        ),
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

    bapo eval … --prompts heldout.jsonl --judge exact --report runs/pirate-report

    bapo eval … --tasks mmlu,arc_easy --limit 200 --chat-template
    """
    with spoken_errors(), ExitStack() as held:
        if gate is not None and not adapter:
            raise ConfigError("--gate judges an adapter: give --adapter.")
        if history and (adapter or against):
            raise ConfigError("--history brings its own adapters: leave out --adapter, --against.")
        from training.evaluation.duels import duels_for
        from training.evaluation.evaluate import Evaluation, Settings, evaluate
        from training.evaluation.gate import load_thresholds
        from training.evaluation.judging import judging
        from training.evaluation.material import Files, compared, gather
        from training.evaluation.regression import with_history
        from training.evaluation.tasks import task_settings
        from training.evaluation.versions import history_of, with_manifests
        from training.model import load_base

        thresholds = load_thresholds(gate) if gate else None
        files = Files(pairs, facts, choices, text or (), prompts, general_prompts, refusals)
        harness = task_settings(tasks, include_path, fewshot, chat_template, limit, seed)
        if on_server:
            if files.any or gate or history or harness is None:
                raise ConfigError("--on-server goes with --tasks, and with no other question.")
            found = _on_server(where, model, adapter or (), harness, against or ("base",))
            _show(found, report, as_json=as_json)
            return
        if not files.any and harness is None:
            raise ConfigError("Nothing to evaluate on: give --pairs, --facts, --tasks or another.")
        items, texts, sources = gather(files, limit=limit)
        who = judging(judge, judge_model, judge_instruction, refusals_by, as_json=judge_json)
        items.duels = duels_for(who.judge, items.pairs, items.drift)
        settings = Settings(
            seed=seed,
            max_new_tokens=max_new_tokens,
            judge=" ".join(filter(None, (judge, judge_model, judge_instruction))) or None,
            refusals_by=refusals_by,
            stride=stride,
        )
        candidates, names = compared([Path(one) for one in adapter or ()], against or ())
        manifests: dict[str, Manifest | None] = {}
        if history:
            candidates, manifests = held.enter_context(history_of(history, where))
        base = load_base(model)
        with _as_judged(candidates, base, gated=gate is not None) as measured:
            wanted = Evaluation(
                items, texts, measured, names, who.judge, who.detector, harness, settings, sources
            )
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


def _on_server(
    where: Where,
    model: str,
    adapters: Sequence[str],
    tasks: "TaskSettings",
    against: Sequence[str],
) -> "Report":
    """The tasks, asked of the running server. Raises ConfigError."""
    from training.evaluation.served import RunningServer, evaluate_served

    if not where.server:
        raise ConfigError("--on-server needs --server, its URL, and --key.")
    server = RunningServer(where.server, where.key or "", Path(model))
    return evaluate_served(server, adapters, tasks, against=against, progress=True)


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
