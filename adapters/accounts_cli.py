"""The verbs `bapo users …`, `bapo groups …`, `bapo keys …` and `bapo quotas …`.

Owns their flags; each makes one call on a registry, wherever it is (`terminal.Where`).
"""

from typing import Annotated

import typer

from adapters.accounts import MAX_DAYS, Role
from adapters.terminal import AsJson, Where, located, show, show_rows

users_app = typer.Typer(no_args_is_help=True, add_completion=False, help="Users and what they get.")
groups_app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Groups of users, to grant adapters to."
)
keys_app = typer.Typer(no_args_is_help=True, add_completion=False, help="API keys.")
quotas_app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="How much an owner may keep."
)

Group = Annotated[str, typer.Argument(help="Group name.")]
Members = Annotated[list[str], typer.Argument(metavar="USER...", help="User names.")]
Owner = Annotated[str, typer.Argument(help="User name, or '*' for everybody without his own.")]
PerMinute = Annotated[int | None, typer.Option(min=0, help="In any 60 seconds.")]
User = Annotated[str, typer.Argument(help="User name.")]


@users_app.command("create")
@located
def create_user(
    user: User,
    where: Where,
    adapter: Annotated[str | None, typer.Option(help="What the user talks to.")] = None,
) -> None:
    """Create a user and, with --adapter, assign an adapter to him."""
    with where.registry() as registry:
        registry.create_user(user)
        if adapter:
            registry.assign(user, adapter)


@users_app.command("list")
@located
def list_users(where: Where, as_json: AsJson = False) -> None:
    """Every user."""
    with where.registry() as registry:
        show_rows(registry.list_users(), as_json=as_json)


@users_app.command("assign")
@located
def assign(
    user: User,
    adapter: Annotated[str, typer.Argument(help="Adapter name, or base.")],
    where: Where,
) -> None:
    """Set what the user talks to when a request names nothing."""
    with where.registry() as registry:
        registry.assign(user, None if adapter == "base" else adapter)


@users_app.command("delete")
@located
def delete_user(user: User, where: Where) -> None:
    """Delete a user with his keys and grants."""
    with where.registry() as registry:
        registry.delete_user(user)


@users_app.command("limits")
@located
def limits(
    user: User,
    where: Where,
    requests_per_minute: PerMinute = None,
    tokens_per_minute: PerMinute = None,
    streams: Annotated[int | None, typer.Option(min=0, help="Requests at the same time.")] = None,
    tokens_per_month: Annotated[int | None, typer.Option(min=0, help="By UTC.")] = None,
    default: Annotated[bool, typer.Option("--default", help="Limit him as everybody.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a user's own limits and what he has used; with options, set them.

    What is not given then is as for everybody (the server's settings).
    """
    bounds = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "streams": streams,
        "tokens_per_month": tokens_per_month,
    }
    with where.registry() as registry:
        change = default or any(bound is not None for bound in bounds.values())
        found = registry.set_limits(user, bounds) if change else registry.limits(user)
        show(found, as_json=as_json)


@keys_app.command("create")
@located
def create_key(
    where: Where,
    user: Annotated[str | None, typer.Option(help="The user it speaks for.")] = None,
    role: Annotated[Role, typer.Option(help="What it may do.")] = Role.USER,
    days: Annotated[
        float | None, typer.Option(min=0, max=MAX_DAYS, help="How long it is valid [for ever].")
    ] = None,
) -> None:
    """Make an API key and print it, this once."""
    with where.registry() as registry:
        print(registry.create_key(user, role, days)["key"])


@keys_app.command("revoke")
@located
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="The middle part of the key.")], where: Where
) -> None:
    """Make a key invalid at once."""
    with where.registry() as registry:
        registry.revoke_key(key_id)


@groups_app.command("create")
@located
def create_group(group: Group, where: Where) -> None:
    """Create an empty group."""
    with where.registry() as registry:
        registry.create_group(group)


@groups_app.command("list")
@located
def list_groups(where: Where, as_json: AsJson = False) -> None:
    """Every group and who is in it."""
    with where.registry() as registry:
        show_rows(registry.list_groups(), as_json=as_json)


@groups_app.command("add")
@located
def add_members(group: Group, users: Members, where: Where) -> None:
    """Put users into a group."""
    with where.registry() as registry:
        registry.add_members(group, users)


@groups_app.command("remove")
@located
def remove_members(group: Group, users: Members, where: Where) -> None:
    """Take users out of a group."""
    with where.registry() as registry:
        registry.remove_members(group, users)


@groups_app.command("delete")
@located
def delete_group(group: Group, where: Where) -> None:
    """Delete a group and what was granted to it; its members stay users."""
    with where.registry() as registry:
        registry.delete_group(group)


@quotas_app.command("set")
@located
def set_quota(
    owner: Owner,
    where: Where,
    versions: Annotated[int | None, typer.Option(help="At most so many versions.")] = None,
    mebibytes: Annotated[float | None, typer.Option(help="At most so many MiB.")] = None,
) -> None:
    """Bound what an owner may keep; what is there already stays."""
    size = None if mebibytes is None else int(mebibytes * 2**20)
    with where.registry() as registry:
        registry.set_quota(owner, versions, size)


@quotas_app.command("list")
@located
def list_quotas(where: Where, as_json: AsJson = False) -> None:
    """Every bound that was set."""
    with where.registry() as registry:
        show_rows(registry.list_quotas(), as_json=as_json)


@quotas_app.command("delete")
@located
def delete_quota(owner: Owner, where: Where) -> None:
    """Bound an owner as everybody."""
    with where.registry() as registry:
        registry.delete_quota(owner)
