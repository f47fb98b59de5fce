"""The verbs `bapo feedback …`.

Owns their flags and the file that `bapo train` and `bapo fleet` read; each makes its calls on a
registry, wherever it is (`terminal.Where`).
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from adapters.errors import Conflict
from adapters.files import sync_folder, write_durably
from adapters.pairs import Pair
from adapters.terminal import Where, located

feedback_app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="What users say of their answers: who agreed that texts are kept, and preference pairs.",
)

User = Annotated[str, typer.Argument(help="User name.")]


@feedback_app.command("agree")
@located
def agree(user: User, where: Where) -> None:
    """Note that a user agreed: the texts of his answers are kept for BAPO_FEEDBACK_DAYS."""
    with where.registry() as registry:
        registry.set_consent(user, True)


@feedback_app.command("withdraw")
@located
def withdraw(user: User, where: Where) -> None:
    """Keep no text of a user any longer, and forget those that have been kept."""
    with where.registry() as registry:
        registry.set_consent(user, False)


@feedback_app.command("export")
@located
def export(
    where: Where,
    out: Annotated[Path, typer.Option(help="A JSONL file that does not exist yet.")],
    user: Annotated[str | None, typer.Option(help="Only what this user said.")] = None,
    adapter: Annotated[
        str | None, typer.Option(help="Only what was said of this adapter's answers, or base's.")
    ] = None,
) -> None:
    """Write preference pairs from what users said.

    One pair a line, with prompt, chosen, rejected and user_id, as training reads them:

    bapo feedback export --out pairs.jsonl && bapo fleet --data pairs.jsonl --out runs/fleet

    bapo feedback export --user alice --out alice.jsonl && bapo train --data alice.jsonl --out alice
    """
    if os.path.lexists(out):
        raise Conflict(f"The file {out} exists: name one that does not exist yet.")
    if not out.absolute().parent.is_dir():
        raise Conflict(f"The folder {out.parent} does not exist: make it, or name another.")
    draft = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    pairs = users = 0

    def lines(found: Iterator[Pair]) -> Iterator[bytes]:
        nonlocal pairs, users
        last = None
        for pair in found:
            pairs, users, last = pairs + 1, users + (pair["user_id"] != last), pair["user_id"]
            yield json.dumps(pair, ensure_ascii=False).encode() + b"\n"

    try:
        with where.registry() as registry:
            write_durably(draft, lines(registry.pairs(user, adapter)))
        if pairs:
            draft.rename(out)
            sync_folder(out.absolute().parent)
    finally:
        draft.unlink(missing_ok=True)
    print(f"{pairs} pairs of {users} users in {out}" if pairs else "no pairs yet: nothing written")
