"""The verbs `bapo adapters …` and `bapo db …`.

Owns their flags; each makes one call on a registry, wherever it is (`terminal.Where`).
"""

from pathlib import Path
from typing import Annotated

import typer

from adapters.base import POCKET, describe_base
from adapters.terminal import AsJson, Where, located, show, show_rows, spoken_errors
from adapters.validation import Limits, validate

adapters_app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Adapters: check, publish, switch."
)
db_app = typer.Typer(no_args_is_help=True, add_completion=False, help="The registry's database.")

Model = Annotated[Path, typer.Option(help="Folder of the base model.")]
Adapter = Annotated[str, typer.Argument(help="Adapter name, e.g. alice/concise.")]
Expected = Annotated[
    int | None, typer.Option(help="Refuse unless this version is active now (0: none).")
]
Force = Annotated[
    bool, typer.Option("--force", help="Also what the gate refuses; the audit log says so.")
]


@adapters_app.command("check")
def check(
    folder: Annotated[Path, typer.Argument(help="Adapter folder.")],
    model: Model = POCKET,
    max_rank: Annotated[int, typer.Option(help="Largest rank the server takes.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Would a server of this base model accept the adapter?"""
    with spoken_errors():
        report = validate(folder, describe_base(model), Limits(max_rank=max_rank))
        found = {
            "rank": report.rank,
            "layers": len(report.modules),
            "parameters": report.parameters,
            "bytes": report.bytes,
            "warnings": list(report.warnings),
        }
        show(found, as_json=as_json)


@adapters_app.command("publish")
@located
def publish(
    adapter: Adapter,
    folder: Annotated[Path, typer.Argument(help="Adapter folder.")],
    where: Where,
    activate: Annotated[bool, typer.Option(help="Switch to it at once.")] = False,
    owner: Annotated[str | None, typer.Option(help="The user it belongs to.")] = None,
    force: Force = False,
    model: Model = POCKET,
    as_json: AsJson = False,
) -> None:
    """Check an adapter, bring it to the served form and keep it as a new version."""
    with where.registry(model) as registry:
        made = registry.publish(adapter, folder, activate=activate, owner=owner, force=force)
    show(made, as_json=as_json)


@adapters_app.command("list")
@located
def list_adapters(where: Where, as_json: AsJson = False) -> None:
    """Every adapter, its active version and its owner."""
    with where.registry() as registry:
        show_rows(registry.list_adapters(), as_json=as_json)


@adapters_app.command("show")
@located
def show_adapter(adapter: Adapter, where: Where, as_json: AsJson = False) -> None:
    """One adapter with its versions and who may use it."""
    with where.registry() as registry:
        found = registry.describe(adapter)
    if as_json:
        show(found, as_json=True)
        return
    show({k: v for k, v in found.items() if k != "versions"}, as_json=False)
    rows = [{k: v for k, v in row.items() if k != "manifest"} for row in found["versions"]]
    show_rows(rows, as_json=False)


@adapters_app.command("activate")
@located
def activate_version(
    adapter: Adapter,
    version: Annotated[int, typer.Argument(help="Version number.")],
    where: Where,
    expected: Expected = None,
    force: Force = False,
) -> None:
    """Make a version the active one."""
    with where.registry() as registry:
        print(registry.activate(adapter, version, expected, force=force)["ref"])


@adapters_app.command("rollback")
@located
def roll_back(adapter: Adapter, where: Where, expected: Expected = None) -> None:
    """Back to the version that was active before; again, to the one before that."""
    with where.registry() as registry:
        print(registry.rollback(adapter, expected)["ref"])


@adapters_app.command("retire")
@located
def retire(adapter: Adapter, where: Where) -> None:
    """Take an adapter out of use for good; its name stays taken."""
    with where.registry() as registry:
        registry.retire(adapter)


@adapters_app.command("grant")
@located
def grant(
    adapter: Adapter,
    where: Where,
    everyone: Annotated[bool, typer.Option("--everyone", help="Anybody with a key.")] = False,
    user: Annotated[list[str] | None, typer.Option(help="A user; may be repeated.")] = None,
    group: Annotated[list[str] | None, typer.Option(help="A group; may be repeated.")] = None,
) -> None:
    """Set who may use an adapter besides its owner; without any option, nobody."""
    with where.registry() as registry:
        registry.set_grants(adapter, everyone=everyone, users=user or [], groups=group or [])


@adapters_app.command("audit")
@located
def audit(
    where: Where,
    subject: Annotated[
        str | None, typer.Argument(help="Only of this adapter, user, key or group.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many lines.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Who changed what, and when, newest first."""
    with where.registry() as registry:
        show_rows(registry.audit(subject, limit), as_json=as_json)


@adapters_app.command("verify")
@located
def verify(where: Where, as_json: AsJson = False) -> None:
    """Hash every stored adapter again; exit 1 if one is damaged. An upload of the same mends it."""
    with where.registry() as registry:
        found = registry.verify()
    damaged: dict[str, str] = found["damaged"]
    if as_json:
        show(found, as_json=True)
    else:
        for sentence in damaged.values():
            typer.secho(sentence, fg="red", err=True)
        print(f"{found['stored'] - len(damaged)} of {found['stored']} stored adapters are sound")
    if damaged:
        raise typer.Exit(1)


@adapters_app.command("gc")
@located
def collect_garbage(
    where: Where,
    hours: Annotated[float, typer.Option(min=0, help="Spare what is younger.")] = 24,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove stored bytes that no living adapter's version names (those of retired ones)."""
    with where.registry() as registry:
        show(registry.collect(hours, dry_run=dry_run), as_json=as_json)


@adapters_app.command("export")
@located
def export(
    folder: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
    where: Where,
) -> None:
    """Write the whole registry, accounts and adapters' bytes, to a folder."""
    with where.registry() as registry:
        print(registry.export(folder).sentence("exported"))


@adapters_app.command("import")
@located
def import_(
    folder: Annotated[Path, typer.Argument(help="A folder that `export` wrote.")],
    where: Where,
) -> None:
    """Fill an empty registry, on whatever database and store, from an exported folder.

    A server's may have the admin key of its first start, which goes on to be accepted.
    """
    with where.registry() as registry:
        print(registry.import_(folder).sentence("imported"))


@db_app.command("upgrade")
@located
def upgrade(where: Where) -> None:
    """Bring the database to the present schema (the server does so at its start, too)."""
    with where.local():
        print("the database is up to date")


@db_app.callback()
def _db() -> None:
    pass
