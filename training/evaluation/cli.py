"""The verb `bapo eval`.

Owns which options contradict each other, and the way from them to a report. Refuses the options
themselves (`options.py`), work, and what is shown (`showing.py`). Torch is imported inside, so that
help and wrong usage answer at once.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapters.terminal import Where, located
from training.cli import spoken_errors
from training.collector import importing
from training.errors import ConfigError
from training.evaluation.options import Asking, Files, Gating, Harness, Judges, Output, Tested

if TYPE_CHECKING:
    from adapters.artifact import Manifest
    from training.evaluation.results import Report
    from training.evaluation.tasks import TaskSettings

evaluate = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Given:
    """Every option but those of what comes out."""

    model: str
    tested: Tested
    files: Files
    asking: Asking
    harness: Harness
    judges: Judges
    gating: Gating
    where: Where


@evaluate.command()
@located
def _evaluate(
    model: Annotated[str, typer.Option(help="Base model: a folder or a Hub name.")],
    tested: Tested,
    files: Files,
    asking: Asking,
    harness: Harness,
    judges: Judges,
    gating: Gating,
    output: Output,
    where: Where,
) -> None:
    """Is an adapter good, and what did it forget? Base and adapters side by side.

    bapo eval --model models/pocket --adapter runs/pirate --pairs heldout.jsonl --facts facts.jsonl

    bapo eval … --prompts heldout.jsonl --judge exact --report runs/pirate-report

    bapo eval … --tasks mmlu,arc_easy --limit 200 --chat-template
    """
    given = Given(model, tested, files, asking, harness, judges, gating, where)
    with spoken_errors():
        _refuse_contradictions(given)
        from training.evaluation.showing import keep, show
        from training.evaluation.tasks import task_settings

        tasks = task_settings(harness, asking.limit, asking.seed)
        if tasks is not None and harness.on_server:
            found = _of_server(given, tasks)
        else:
            found = _in_memory(given, tasks)
        if output.report is not None:
            keep(found, output.report)
        show(found, output.report, as_json=output.as_json)
        if _lost_something(found) or _failed_the_gate(found):
            raise typer.Exit(1)


def _refuse_contradictions(given: Given) -> None:
    """Raises ConfigError, before anything large is imported."""
    tested, asks_files = given.tested, given.files.any
    if given.gating.gate is not None and not tested.adapter:
        raise ConfigError("--gate judges an adapter: give --adapter.")
    if tested.history and (tested.adapter or tested.against):
        raise ConfigError("--history brings its own adapters: leave out --adapter, --against.")
    if given.harness.on_server:
        if asks_files or given.gating.gate or tested.history or given.harness.tasks is None:
            raise ConfigError("--on-server goes with --tasks, and with no other question.")
        if not given.where.server:
            raise ConfigError("--on-server needs --server, its URL, and --key.")
    if not asks_files and given.harness.tasks is None:
        raise ConfigError("Nothing to evaluate on: give --pairs, --facts, --tasks or another.")


def _of_server(given: Given, tasks: "TaskSettings") -> "Report":
    """The tasks, asked of the running server. Raises ConfigError."""
    from training.evaluation.served import RunningServer, evaluate_served

    server = RunningServer(given.where.server or "", given.where.key or "", Path(given.model))
    adapters, against = given.tested.adapter or (), given.tested.against or ("base",)
    return evaluate_served(server, adapters, tasks, against=against, progress=True)


def _in_memory(given: Given, tasks: "TaskSettings | None") -> "Report":
    """Everything, asked of the base and the adapters in this process.

    Whatever can be wrong with a file is said before the model is loaded. Raises TrainingError.
    """
    with importing():
        from training.evaluation.duels import duels_for
        from training.evaluation.evaluate import Evaluation, Settings, evaluate
        from training.evaluation.gated import evaluate_gated, open_gate
        from training.evaluation.judging import judging
        from training.evaluation.material import compared, gather
        from training.evaluation.regression import with_history
        from training.evaluation.versions import history_of, with_manifests
        from training.model import load_base

    tested, asking, judges = given.tested, given.asking, given.judges
    gate = open_gate(given.gating.gate, given.gating.gate_key) if given.gating.gate else None
    items, texts, sources = gather(given.files, limit=asking.limit)
    who = judging(judges)
    items.duels = duels_for(who.judge, items.pairs, items.drift)
    settings = Settings(
        seed=asking.seed,
        max_new_tokens=asking.max_new_tokens,
        judge=judges.spelled,
        refusals_by=judges.refusals_by,
        stride=asking.stride,
    )
    models, names = compared([Path(one) for one in tested.adapter or ()], tested.against or ())
    manifests: dict[str, Manifest | None] = {}
    with ExitStack() as held:
        if tested.history:
            models, manifests = held.enter_context(history_of(tested.history, given.where))
        base = load_base(given.model)
        wanted = Evaluation(
            items, texts, models, names, who.judge, who.detector, tasks, settings, sources
        )
        if gate is not None:
            return evaluate_gated(base, wanted, gate, progress=True)
        found = evaluate(base, wanted, progress=True)
    return with_history(with_manifests(found, manifests)) if tested.history else found


def _lost_something(found: "Report") -> bool:
    return found.history is not None and bool(found.history.losses)


def _failed_the_gate(found: "Report") -> bool:
    return any(model.verdict is not None and not model.verdict.passed for model in found.models)
