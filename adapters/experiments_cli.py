"""The verbs `bapo experiments …`.

Owns their flags and how an arm is written, NAME=ADAPTER[:WEIGHT]; each makes one call on a
registry, wherever it is (`terminal.Where`).
"""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from adapters.arms import Arm
from adapters.errors import InvalidName
from adapters.terminal import AsJson, Where, located, show, show_rows

experiments_app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="A/B: who gets what, and which is better."
)

Experiment = Annotated[str, typer.Argument(help="Experiment name.")]
GivenArms = Annotated[
    list[str],
    typer.Option(
        "--arm", metavar="NAME=ADAPTER[:WEIGHT]", help="control=base, warm=concise@3:2; for each."
    ),
]


def parse_arm(text: str) -> Arm:
    """Raises InvalidName."""
    name, _, rest = text.partition("=")
    serves, colon, weight = rest.partition(":")
    if not serves or (colon and not (weight.isascii() and weight.isdigit() and len(weight) < 10)):
        raise InvalidName(f"{text[:80]!r} is no arm: write NAME=ADAPTER:WEIGHT, as warm=concise:2.")
    return Arm.of(name, serves, int(weight) if colon else 1)


@experiments_app.command("create")
@located
def create(experiment: Experiment, where: Where, arms: GivenArms, as_json: AsJson = False) -> None:
    """Make a draft of two arms or more."""
    with where.registry() as registry:
        made = registry.create_experiment(experiment, [parse_arm(arm) for arm in arms])
        _show(made, as_json=as_json)


@experiments_app.command("arms")
@located
def set_arms(
    experiment: Experiment, where: Where, arms: GivenArms, as_json: AsJson = False
) -> None:
    """Replace a draft's arms; once it has begun, the weights."""
    with where.registry() as registry:
        changed = registry.set_arms(experiment, [parse_arm(arm) for arm in arms])
        _show(changed, as_json=as_json)


@experiments_app.command("list")
@located
def list_experiments(where: Where, as_json: AsJson = False) -> None:
    """Every experiment."""
    with where.registry() as registry:
        found = registry.list_experiments()
        show_rows(found if as_json else [_in_words(one) for one in found], as_json=as_json)


@experiments_app.command("show")
@located
def get(experiment: Experiment, where: Where, as_json: AsJson = False) -> None:
    """One experiment, and how many users take part."""
    with where.registry() as registry:
        _show(registry.get_experiment(experiment), as_json=as_json)


@experiments_app.command("enrol")
@located
def enrol(
    experiment: Experiment,
    where: Where,
    users: Annotated[list[str] | None, typer.Option("--user", help="This user.")] = None,
    groups: Annotated[list[str] | None, typer.Option("--group", help="Who is in it now.")] = None,
    everyone: Annotated[
        bool, typer.Option("--everyone", help="All who have no assignment now.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Have users take part; `bapo users assign` takes one out again."""
    with where.registry() as registry:
        added = registry.enrol(
            experiment, users=users or [], groups=groups or [], everyone=everyone
        )
        show(added, as_json=as_json)


@experiments_app.command("start")
@located
def start(
    experiment: Experiment,
    where: Where,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Also with arms that the gate refuses; the audit log says so."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Split its users from now on."""
    with where.registry() as registry:
        _show(registry.start_experiment(experiment, force=force), as_json=as_json)


@experiments_app.command("stop")
@located
def stop(experiment: Experiment, where: Where, as_json: AsJson = False) -> None:
    """Give its users their own assignments back, for now."""
    with where.registry() as registry:
        _show(registry.stop_experiment(experiment), as_json=as_json)


@experiments_app.command("conclude")
@located
def conclude(
    experiment: Experiment,
    where: Where,
    winner: Annotated[
        str | None, typer.Option(help="The arm its users get from now on [their own assignment].")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """End it for good."""
    with where.registry() as registry:
        _show(registry.conclude_experiment(experiment, winner), as_json=as_json)


@experiments_app.command("results")
@located
def results(experiment: Experiment, where: Where, as_json: AsJson = False) -> None:
    """How often each arm's answers were liked, and each arm against the first.

    An arm's win rate is of its answers. Arms are compared by their users: each one's own win rate,
    all users alike (Welch's test; p by Holm where there are several). Intervals are of 95 %. Users
    whom a changed weight has moved count in their first arm only.
    """
    with where.registry() as registry:
        found = registry.experiment_results(experiment)
    if as_json:
        show(found, as_json=True)
        return
    show_rows([_arm_in_words(arm) for arm in found["arms"]], as_json=False)
    show_rows([_comparison_in_words(one) for one in found["comparisons"]], as_json=False)
    if found["moved"]:
        print(
            f"{found['moved']} users were moved by a changed weight: they count in their first arm."
        )


@experiments_app.command("delete")
@located
def delete(experiment: Experiment, where: Where) -> None:
    """Forget it; its users have their own assignments."""
    with where.registry() as registry:
        registry.delete_experiment(experiment)


def _show(experiment: Mapping[str, Any], *, as_json: bool) -> None:
    show(experiment if as_json else _in_words(experiment), as_json=as_json)


def _arm_in_words(arm: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "arm": arm["name"],
        "adapter": arm["adapter"],
        "users": arm["users"],
        "liked": f"{arm['liked']} of {arm['rated']}",
        "win rate": _figure(arm["win_rate"]),
        "raters": arm["raters"],
        "win rate by user": _figure(arm["by_user"]),
    }


def _comparison_in_words(found: Mapping[str, Any]) -> dict[str, Any]:
    interval = f"[{found['low']:+.1%}, {found['high']:+.1%}]"
    return {
        "arm": found["arm"],
        "against": found["against"],
        "difference by user": f"{found['difference']:+.1%} {interval}",
        "p": f"{found['p_value']:.2g}",
        "p (Holm)": f"{found['p_holm']:.2g}",
        "raters": found["raters"],
    }


def _figure(figure: Mapping[str, Any]) -> str | None:
    if figure["value"] is None:
        return None
    return f"{figure['value']:.1%} [{figure['low']:.1%}, {figure['high']:.1%}]"


def _in_words(experiment: Mapping[str, Any]) -> dict[str, Any]:
    arms = [f"{arm['name']}={arm['adapter']}:{arm['weight']}" for arm in experiment["arms"]]
    return {**experiment, "arms": ", ".join(arms)}
