"""What the verbs share: where the registry is, failures as one sentence, tables or JSON.

Owns the options that locate a registry, on this machine or behind a server's URL, and the wording
on the terminal. Refuses what the verbs do. A failure is one sentence on stderr and exit code 1.
"""

import dataclasses
import functools
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import platformdirs
import typer
from rich.console import Console
from rich.table import Column, Table

from adapters.base import POCKET
from adapters.errors import AdapterError
from adapters.gate import gate_of_environment
from adapters.local import LocalRegistry
from adapters.registry import Registry, open_registry
from adapters.remote import RemoteRegistry

AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


@dataclasses.dataclass(frozen=True)
class Where:
    """Where the registry is; every field is an option of every verb that asks for it."""

    data_dir: Annotated[
        Path,
        typer.Option(envvar="BAPO_DATA_DIR", help="The server's data folder, when it is here."),
    ] = Path(platformdirs.user_data_dir("bapo-server"))
    database_url: Annotated[
        str | None,
        typer.Option(envvar="BAPO_DATABASE_URL", help="Database, if not in the data folder."),
    ] = None
    store_url: Annotated[
        str | None,
        typer.Option(envvar="BAPO_STORE_URL", help="Object store, if not in the data folder."),
    ] = None
    server: Annotated[
        str | None, typer.Option("--server", envvar="BAPO_SERVER", help="URL of a running server.")
    ] = None
    key: Annotated[
        str | None, typer.Option("--key", envvar="BAPO_KEY", help="Admin key of that server.")
    ] = None

    @contextmanager
    def registry(self, model: Path = POCKET) -> Iterator[LocalRegistry | RemoteRegistry]:
        """The registry, here or on the server: both have the same methods and answers.

        `model` is the base that uploads are checked against where the registry is here.
        """
        if not self.server:
            with self.local() as registry:
                yield LocalRegistry(registry, actor=whoami(), model=model)
        elif not self.key:
            raise AdapterError("No admin key was given for the server: use --key or set BAPO_KEY.")
        else:
            yield RemoteRegistry(self.server, self.key)

    @contextmanager
    def local(self) -> Iterator[Registry]:
        """The registry itself, for what is not done over HTTP."""
        if self.server:
            raise AdapterError(
                "This is done on the registry itself: give --data-dir, or --database-url and"
                " --store-url, and leave out --server (and BAPO_SERVER)."
            )
        registry = open_registry(
            self.data_dir, self.database_url, self.store_url, gate=gate_of_environment()
        )
        try:
            yield registry
        finally:
            registry.close()


def located(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb whose parameters that are dataclasses, `where` for one, are filled from options.

    Each field of such a class is an option; what fails is one sentence (`spoken_errors`).
    """
    own = inspect.signature(verb).parameters.values()
    groups: dict[str, Any] = {
        p.name: p.annotation for p in own if dataclasses.is_dataclass(p.annotation)
    }
    shown = [p for p in own if p.name not in groups]
    options = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type
        )
        for group in groups.values()
        for field in dataclasses.fields(group)
    ]

    @functools.wraps(verb)
    def with_options(*given: Any, **named: Any) -> None:
        filled = {
            name: group(
                **{field.name: named.pop(field.name) for field in dataclasses.fields(group)}
            )
            for name, group in groups.items()
        }
        with spoken_errors():
            verb(*given, **named, **filled)

    with_options.__dict__["__signature__"] = inspect.Signature([*shown, *options])
    with_options.__annotations__ = {p.name: p.annotation for p in [*shown, *options]}
    return with_options


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


def whoami() -> str:
    """Who changes the registry from a terminal, for the audit log."""
    return f"cli:{os.environ.get('USER', 'unknown')}"


def show(found: Mapping[str, Any], *, as_json: bool) -> None:
    """One thing: JSON, or a row for each of its fields."""
    if as_json:
        print(json.dumps(found))
        return
    table = Table(show_header=False, box=None)
    for name, value in found.items():
        table.add_row(name, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
    Console().print(table)


def show_rows(rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """Many things: JSON, or a row for each."""
    if as_json:
        print(json.dumps(rows))
        return
    if not rows:
        print("none yet")
        return
    table = Table(*(Column(name, overflow="fold") for name in rows[0]))
    for row in rows:
        table.add_row(*("–" if value is None else str(value) for value in row.values()))
    Console().print(table)
