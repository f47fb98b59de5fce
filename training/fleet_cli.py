"""The verb `bapo fleet`: many users, one process, one base in memory.

Owns its flags, the live bar over users and the summary. Refuses work: `fleet.py` does it.
"""

import json
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from training.cli import MORE_SETTINGS, Model, Words, file_and_settings, spoken_errors
from training.collector import importing
from training.errors import ConfigError
from training.forking import begin

if TYPE_CHECKING:
    from adapters.gate import Gate
    from training.config import Experiment
    from training.fleet import Outcome, Publish
    from training.model import ResidentBase
    from training.progress import Tick
    from training.users import Users
    from training.workers import MakeJudge, MakePublish

fleet = typer.Typer(add_completion=False)

SHOWN_FAILURES = 50
JUDGED = "The gate"


@fleet.command(context_settings=MORE_SETTINGS)
def _fleet(
    words: Words = None,
    model: Model = None,
    data: Annotated[
        str | None,
        typer.Option(help="A folder of <user>.jsonl or .parquet, or one file with user_id."),
    ] = None,
    out: Annotated[str | None, typer.Option(help="Folder; each user's adapter goes below.")] = None,
    server: Annotated[
        str | None,
        typer.Option(envvar="BAPO_SERVER", help="Publish to this running server, and activate."),
    ] = None,
    key: Annotated[
        str | None, typer.Option(envvar="BAPO_KEY", help="Admin key of that server.")
    ] = None,
    registry: Annotated[
        Path | None, typer.Option(help="Publish to the registry in this data folder, and activate.")
    ] = None,
    gate: Annotated[
        Path | None,
        typer.Option(
            help="Thresholds, YAML: judge each adapter, sign the verdict, activate what passed.",
            rich_help_panel=JUDGED,
        ),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(
            help="For the gate: users' pairs that are not trained on, in the form of --data.",
            rich_help_panel=JUDGED,
        ),
    ] = None,
    facts: Annotated[
        Path | None,
        typer.Option(
            help="For the gate: questions with answers, JSONL, the same for all.",
            rich_help_panel=JUDGED,
        ),
    ] = None,
    gate_key: Annotated[
        Path | None,
        typer.Option(
            help="PEM file of the signing key; default: this user's own.", rich_help_panel=JUDGED
        ),
    ] = None,
    shard: Annotated[
        str, typer.Option(help="i/n: only the i-th of n parts of the users, from 1.")
    ] = "1/1",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes [as many as cores and memory carry].")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON a user.")] = False,
) -> None:
    """Train many users' adapters on one base, each published as it is finished.

    Run it again after a stop, a kill or new data: finished users are passed over, the
    others go on. One user's bad data fails that user; the summary says why, and the exit
    code is 1.

    bapo fleet --model models/pocket --data examples/preferences --out runs/fleet

    bapo fleet … --server URL --key KEY --gate gate.yaml --held-out heldout --facts facts.jsonl
    """
    with spoken_errors():
        file, settings = file_and_settings(words or [])
        begin(workers)  # beside the imports that follow
        with importing():
            from training.config import experiment, read_settings
            from training.progress import counting
            from training.users import users_of, with_held_out
            from training.workers import fitting_workers

        flags = {k: v for k, v in (("model", model), ("data", data), ("out", out)) if v}
        run = experiment((read_settings(file) if file else {}) | flags | settings)
        part = _part(shard)
        users = users_of(run.data)
        judging = _judging(gate, held_out, facts, gate_key)
        if held_out is not None:
            users = with_held_out(users, users_of(held_out))
        count = workers or fitting_workers(run.model, len(users) // part[1])
        publishing = _publishing(server, key, registry)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        began = time.perf_counter()
        outcomes = []
        with counting(f"users of {Path(run.data).name}", len(users) // part[1]) as tick:
            found = _train_all(count, run, users, publishing, judging, part, tick)
            for outcome in found:
                outcomes.append(outcome)
                if as_json:
                    print(json.dumps(asdict(outcome)), flush=True)
        if not as_json:
            _show(outcomes, time.perf_counter() - began)
    if any(outcome.status == "failed" or outcome.gate for outcome in outcomes):
        raise typer.Exit(1)


def _train_all(
    workers: int,
    run: "Experiment",
    users: "Users",
    publishing: "MakePublish",
    judging: "MakeJudge | None",
    part: tuple[int, int],
    tick: "Tick",
) -> "Iterator[Outcome]":
    """The outcomes as they come, from several processes or from this one."""
    out = Path(run.out)
    if workers > 1:
        from training.workers import train_fleet_with

        return train_fleet_with(
            workers,
            run.model,
            users,
            out,
            run.config,
            publishing=publishing,
            judging=judging,
            shard=part,
            tick=tick,
        )
    from training.fleet import train_fleet
    from training.model import load_base

    base = load_base(run.model, cpu=run.config.use_cpu, four_bit=run.config.load_in_4bit)
    return train_fleet(
        base,
        users,
        out,
        run.config,
        judge=judging(base) if judging else None,
        publish=publishing(base),
        shard=part,
        tick=tick,
    )


def _judging(
    gate: Path | None, held_out: str | None, facts: Path | None, key: Path | None
) -> "MakeJudge | None":
    """What judges each adapter, if anything. Raises ConfigError for what it could not measure."""
    if gate is None:
        if held_out or facts or key:
            raise ConfigError("--held-out, --facts and --gate-key are the gate's: give --gate.")
        return None
    from training.evaluation.gatekeeper import GateFiles

    files = GateFiles(gate, facts, key)
    files.refuse_unmeasurable(held_out=held_out is not None)
    return files


def _publishing(server: str | None, key: str | None, data_dir: Path | None) -> "MakePublish":
    if server and data_dir:
        raise ConfigError("Give --server or --registry, not both.")
    if server:
        if not key:
            raise ConfigError("--server needs --key, or BAPO_KEY.")
        return partial(_over_http, server, key)
    if not data_dir:
        return _nowhere
    from adapters.gate import gate_of_environment

    # Asked here and not by the workers: their forkserver keeps the environment it began with.
    return partial(_into_registry, data_dir, gate_of_environment())


def _nowhere(base: "ResidentBase") -> None:
    return None


def _over_http(server: str, key: str, base: "ResidentBase") -> "Publish":
    from adapters.remote import RemoteRegistry

    remote = RemoteRegistry(server, key)

    def publish(name: str, folder: Path, once: str, *, activate: bool) -> int:
        made = remote.publish(name, folder, activate=activate, idempotency_key=once)
        return int(made["version"])

    return publish


def _into_registry(data_dir: Path, gate: "Gate | None", base: "ResidentBase") -> "Publish":
    from adapters.registry import open_registry

    registry = open_registry(data_dir, gate=gate)

    def publish(name: str, folder: Path, once: str, *, activate: bool) -> int:
        return registry.publish(
            name, folder, base=base.info, activate=activate, idempotency_key=once, actor="fleet"
        ).version

    return publish


def _part(shard: str) -> tuple[int, int]:
    number, slash, parts = shard.partition("/")
    if not (slash and number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise ConfigError(f"--shard must be like 2/4, not {shard!r}.")
    return int(number) - 1, int(parts)


def _show(outcomes: Sequence["Outcome"], seconds: float) -> None:
    console = Console()
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    refused = [outcome for outcome in outcomes if outcome.gate]
    _show_why(console, "why it failed", f"{len(failed)} failed", failed)
    title = f"{len(refused)} did not pass the gate, so not active"
    _show_why(console, "which lines did not hold", title, refused)
    trained = sum(outcome.status == "trained" for outcome in outcomes)
    kept = sum(outcome.status == "kept" for outcome in outcomes)
    judged = sum(outcome.gate is not None for outcome in outcomes)
    pace = f", {60 * trained / seconds:.1f} a minute" if trained else ""
    passed = f" The gate passed {judged - len(refused)} of {judged}." if judged else ""
    console.print(
        f"{trained} trained{pace}, {kept} were finished before, {len(failed)} failed.{passed}",
        soft_wrap=True,
    )


def _show_why(console: Console, why: str, title: str, outcomes: Sequence["Outcome"]) -> None:
    if not outcomes:
        return
    table = Table("user", why, title=title)
    for outcome in outcomes[:SHOWN_FAILURES]:
        reason = outcome.problem or "; ".join(outcome.gate or ())
        table.add_row(repr(outcome.user)[1:-1], escape(reason))
    console.print(table)
