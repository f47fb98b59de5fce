"""The verbs `bapo adapters …`, `bapo users …`, `bapo keys …` and `bapo db upgrade`.

Owns flags, tables and the wording on the terminal; each verb makes one call, on the registry in a
data folder or on a server named with --server. A failure is one sentence and exit code 1.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import platformdirs
import typer
from rich.console import Console
from rich.table import Table

from adapters.accounts import Role
from adapters.base import POCKET, describe_base
from adapters.errors import AdapterError
from adapters.registry import AdapterVersion, Registry, open_registry
from adapters.remote import RemoteRegistry
from adapters.validation import Limits, validate

adapters_app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Adapters: check, publish, switch."
)
users_app = typer.Typer(no_args_is_help=True, add_completion=False, help="Users and what they get.")
keys_app = typer.Typer(no_args_is_help=True, add_completion=False, help="API keys.")
db_app = typer.Typer(no_args_is_help=True, add_completion=False, help="The registry's database.")

DEFAULT_DATA = platformdirs.user_data_dir("bapo-server")

DataDir = Annotated[
    Path, typer.Option(envvar="BAPO_DATA_DIR", help="The server's data folder, when it is here.")
]
Database = Annotated[
    str | None,
    typer.Option(envvar="BAPO_DATABASE_URL", help="Database, if not in the data folder."),
]
Server = Annotated[
    str | None, typer.Option("--server", envvar="BAPO_SERVER", help="URL of a running server.")
]
Key = Annotated[
    str | None, typer.Option("--key", envvar="BAPO_KEY", help="Admin key of that server.")
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
Model = Annotated[Path, typer.Option(help="Folder of the base model.")]
Adapter = Annotated[str, typer.Argument(help="Adapter name, e.g. alice/concise.")]
User = Annotated[str, typer.Argument(help="User name.")]


@contextmanager
def spoken_errors() -> Iterator[None]:
    """Failures become one sentence on stderr and exit code 1."""
    try:
        yield
    except AdapterError as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(1) from None
    except OSError as error:
        typer.secho(f"{error.filename or 'A file'}: {error.strerror or error}.", fg="red", err=True)
        raise typer.Exit(1) from None


@contextmanager
def local(data_dir: Path, database_url: str | None) -> Iterator[Registry]:
    """The registry on this machine."""
    registry = open_registry(data_dir, database_url)
    try:
        yield registry
    finally:
        registry.close()


def remote(server: str, key: str | None) -> RemoteRegistry:
    if not key:
        raise AdapterError("No admin key was given for the server: use --key or set BAPO_KEY.")
    return RemoteRegistry(server, key)


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
def publish(
    adapter: Adapter,
    folder: Annotated[Path, typer.Argument(help="Adapter folder.")],
    activate: Annotated[bool, typer.Option(help="Switch to it at once.")] = False,
    model: Model = POCKET,
    data_dir: DataDir = Path(DEFAULT_DATA),
    database_url: Database = None,
    server: Server = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Check an adapter, bring it to the served form and keep it as a new version."""
    with spoken_errors():
        if server:
            made = remote(server, key).publish(adapter, folder, activate=activate)
        else:
            base = describe_base(model)
            with local(data_dir, database_url) as registry:
                version = registry.publish(
                    adapter, folder, base=base, activate=activate, actor=whoami()
                )
                made = version_body(version)
        show(made, as_json=as_json)


@adapters_app.command("list")
def list_adapters(
    data_dir: DataDir = Path(DEFAULT_DATA),
    database_url: Database = None,
    server: Server = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Every adapter, its active version and its owner."""
    with spoken_errors():
        if server:
            rows = remote(server, key).list_adapters()
        else:
            with local(data_dir, database_url) as registry:
                rows = registry.list_adapters()
        show_rows(rows, as_json=as_json)


@adapters_app.command("show")
def show_adapter(
    adapter: Adapter,
    data_dir: DataDir = Path(DEFAULT_DATA),
    database_url: Database = None,
    server: Server = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """One adapter with its versions and who may use it."""
    with spoken_errors():
        if server:
            found = remote(server, key).describe(adapter)
        else:
            with local(data_dir, database_url) as registry:
                found = registry.describe(adapter)
        if as_json:
            show(found, as_json=True)
        else:
            show({k: v for k, v in found.items() if k != "versions"}, as_json=False)
            show_rows([without(row, "manifest") for row in found["versions"]], as_json=False)


@adapters_app.command("activate")
def activate_version(
    adapter: Adapter,
    version: Annotated[int, typer.Argument(help="Version number.")],
    expected: Annotated[
        int | None, typer.Option(help="Refuse unless this version is active now (0: none).")
    ] = None,
    data_dir: DataDir = Path(DEFAULT_DATA),
    database_url: Database = None,
    server: Server = None,
    key: Key = None,
) -> None:
    """Make a version the active one."""
    with spoken_errors():
        if server:
            ref = remote(server, key).activate(adapter, version, expected)["ref"]
        else:
            with local(data_dir, database_url) as registry:
                ref = registry.activate(adapter, version, expected, actor=whoami()).ref
        print(ref)


@adapters_app.command("rollback")
def roll_back(
    adapter: Adapter,
    data_dir: DataDir = Path(DEFAULT_DATA),
    database_url: Database = None,
    server: Server = None,
    key: Key = None,
) -> None:
    """Back to the version that was active before."""
    with spoken_errors():
        if server:
            ref = remote(server, key).rollback(adapter)["ref"]
        else:
            with local(data_dir, database_url) as registry:
                ref = registry.rollback(adapter, actor=whoami()).ref
        print(ref)


@adapters_app.command("retire")
def retire(
    adapter: Adapter,
    data_dir: DataDir = Path(DEFAULT_DATA),
    database_url: Database = None,
    server: Server = None,
    key: Key = None,
) -> None:
    """Take an adapter out of use for good; its name stays taken."""
    with spoken_errors():
        if server:
            remote(server, key).retire(adapter)
        else:
            with local(data_dir, database_url) as registry:
                registry.retire(adapter, actor=whoami())


@adapters_app.command("verify")
def verify(data_dir: DataDir = Path(DEFAULT_DATA), database_url: Database = None) -> None:
    """Hash every stored adapter again; exit 1 if one is damaged."""
    with spoken_errors(), local(data_dir, database_url) as registry:
        digests = registry.digests()
        damaged = 0
        for digest in digests:
            try:
                registry.store.verify(digest)
            except AdapterError as error:
                damaged += 1
                typer.secho(str(error), fg="red", err=True)
        print(f"{len(digests) - damaged} of {len(digests)} stored adapters are sound")
        if damaged:
            raise typer.Exit(1)


@users_app.command("create")
def create_user(
    user: User,
    adapter: Annotated[str | None, typer.Option(help="What the user talks to.")] = None,
    data_dir: DataDir = Path(DEFAULT_DATA),
    database_url: Database = None,
    server: Server = None,
    key: Key = None,
) -> None:
    """Create a user and, with --adapter, assign an adapter to him."""
    with spoken_errors():
        if server:
            far = remote(server, key)
            far.create_user(user)
            if adapter:
                far.assign(user, adapter)
        else:
            with local(data_dir, database_url) as registry:
                registry.accounts.create_user(user, actor=whoami())
                if adapter:
                    registry.assign(user, adapter, actor=whoami())


@users_app.command("list")
def list_users(
    data_dir: DataDir = Path(DEFAULT_DATA),
    database_url: Database = None,
    server: Server = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Every user."""
    with spoken_errors():
        if server:
            rows = remote(server, key).list_users()
        else:
            with local(data_dir, database_url) as registry:
                rows = [
                    {"id": u.id, "assigned": u.assigned, "created": u.created.isoformat()}
                    for u in registry.accounts.list_users()
                ]
        show_rows(rows, as_json=as_json)


@users_app.command("delete")
def delete_user(
    user: User,
    data_dir: DataDir = Path(DEFAULT_DATA),
    database_url: Database = None,
    server: Server = None,
    key: Key = None,
) -> None:
    """Delete a user with his keys and grants."""
    with spoken_errors():
        if server:
            remote(server, key).delete_user(user)
        else:
            with local(data_dir, database_url) as registry:
                registry.accounts.delete_user(user, actor=whoami())


@keys_app.command("create")
def create_key(
    user: Annotated[str | None, typer.Option(help="The user it speaks for.")] = None,
    role: Annotated[Role, typer.Option(help="What it may do.")] = Role.USER,
    data_dir: DataDir = Path(DEFAULT_DATA),
    database_url: Database = None,
    server: Server = None,
    key: Key = None,
) -> None:
    """Make an API key and print it, this once."""
    with spoken_errors():
        if server:
            if user is None:
                raise AdapterError("On a server a key belongs to a user: give --user.")
            print(remote(server, key).create_key(user, role)["key"])
        else:
            with local(data_dir, database_url) as registry:
                print(registry.accounts.create_key(role, user, actor=whoami())[1])


@keys_app.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="The middle part of the key.")],
    data_dir: DataDir = Path(DEFAULT_DATA),
    database_url: Database = None,
) -> None:
    """Make a key invalid at once."""
    with spoken_errors(), local(data_dir, database_url) as registry:
        registry.accounts.revoke_key(key_id, actor=whoami())


@db_app.command("upgrade")
def upgrade(data_dir: DataDir = Path(DEFAULT_DATA), database_url: Database = None) -> None:
    """Bring the database to the present schema (the server does so at its start, too)."""
    with spoken_errors(), local(data_dir, database_url):
        print("the database is up to date")


@db_app.callback()
def _db() -> None:
    pass


def whoami() -> str:
    """Who changes the registry from a terminal, for the audit log."""
    return f"cli:{os.environ.get('USER', 'unknown')}"


def version_body(version: AdapterVersion) -> dict[str, Any]:
    return {
        "ref": version.ref,
        "digest": version.digest,
        "rank": version.rank,
        "bytes": version.bytes,
    }


def without(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}


def show(found: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found))
        return
    table = Table(show_header=False, box=None)
    for name, value in found.items():
        table.add_row(name, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
    Console().print(table)


def show_rows(rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows))
        return
    if not rows:
        print("none yet")
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*("–" if value is None else str(value) for value in row.values()))
    Console().print(table)
