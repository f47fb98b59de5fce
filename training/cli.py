"""The verbs `bapo train` and `bapo anchors`.

Owns flags, tables and the wording of failures. Refuses work: each verb gathers its input
and makes one call. Torch is imported inside the verbs, so that help and wrong usage
answer at once. A failure is one sentence on stderr and exit code 1, never a traceback.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from adapters.errors import AdapterError
from training.collector import importing
from training.errors import ConfigError, Stopped, TrainingError

if TYPE_CHECKING:
    from training.config import Experiment

train = typer.Typer(add_completion=False)
anchors = typer.Typer(add_completion=False)

NO_SETTINGS = {"words", "resume", "dry_run"}
MORE_SETTINGS = {"ignore_unknown_options": True}

Model = Annotated[str | None, typer.Option("--model", help="Base model: a folder or a Hub name.")]
PAIRS_HELP = "Preference pairs: JSONL, Parquet, or a Hub data set (owner/name[:split])."
Data = Annotated[str | None, typer.Option("--data", help=PAIRS_HELP)]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CONFIG.yaml] [--SETTING VALUE]...",
        help="An experiment file, and any setting of `bapo train` that has no flag below.",
    ),
]


@train.command(context_settings=MORE_SETTINGS)
def _train(
    words: Words = None,
    model: Model = None,
    data: Data = None,
    out: Annotated[str | None, typer.Option(help="Folder for the adapter.")] = None,
    method: Annotated[str | None, typer.Option(help="bapo, dpo (no anchor) or sft.")] = None,
    anchor_weight: Annotated[float | None, typer.Option(help="Weight of the anchor, λ.")] = None,
    beta: Annotated[float | None, typer.Option(help="Strength of the KL leash, β.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    num_train_epochs: Annotated[
        float | None, typer.Option("--epochs", help="Passes over the pairs.")
    ] = None,
    per_device_train_batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Pairs in a step.")
    ] = None,
    lora_rank: Annotated[int | None, typer.Option("--rank", help="Rank of the adapter.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    eval_data: Annotated[
        str | None, typer.Option(help="Pairs that are not trained on; scored after each epoch.")
    ] = None,
    overwrite: Annotated[
        bool | None, typer.Option("--overwrite", help="Replace what is in the out folder.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from this run's last checkpoint, if any.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would happen, and how long it would take.")
    ] = False,
) -> None:
    """Learn one adapter from preference pairs with BAPO.

    Any other setting of training/config.py can be given as --name value; flags are
    stronger than the file. Ctrl-C ends the run after the running step and leaves a
    checkpoint, from which --resume goes on to the same bits as an unbroken run.

    bapo train --model models/pocket --data examples/preferences/pirate.jsonl --out runs/pirate
    """
    given = locals().items()
    flags = {k: v for k, v in given if v is not None and k not in NO_SETTINGS}
    with spoken_errors():
        file, settings = file_and_settings(words or [])
        with importing():
            from training.config import experiment, read_settings

        run = experiment((read_settings(file) if file else {}) | flags | settings)
        if dry_run:
            from training.forecast import forecast

            found = forecast(run.model, run.data, run.config, eval_pairs=run.eval_data or ())
            Console().print(found.as_table())
        else:
            _learn(run, resume=resume)


def _learn(run: "Experiment", *, resume: bool) -> None:
    """Train, and say in a line what came of it; of several processes, one talks."""
    with importing():
        from training.run import train_adapter

    result = train_adapter(
        run.model,
        run.data,
        run.out,
        run.config,
        eval_pairs=run.eval_data or (),
        overwrite=run.overwrite,
        resume=resume,
        label=Path(run.out).name,
    )
    if run.config.process_index == 0:
        Console().print(
            f"{result.out}: {result.manifest.data['pairs']} pairs,"
            f" reward accuracy {result.metrics['train/rewards/accuracies']:.0%} in the last epoch,"
            f" {sum(result.seconds.values()):.0f} s.",
            soft_wrap=True,
        )


@anchors.command()
def _anchors(
    model: Annotated[str, typer.Option(help="Base model: a folder or a Hub name.")],
    data: Annotated[str, typer.Option(help=PAIRS_HELP)],
    cache: Annotated[str | None, typer.Option(help="Cache file; default: user cache.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 128,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 42,
    answers: Annotated[int, typer.Option(help="Answers for each prompt.")] = 1,
    engine: Annotated[str, typer.Option(help="transformers, vllm, or auto.")] = "auto",
    load_in_4bit: Annotated[
        bool, typer.Option("--load-in-4bit", help="Answers of the base in 4 bits, for QLoRA.")
    ] = False,
) -> None:
    """Fill the cache of the base model's own answers, so that training finds them there."""
    with spoken_errors():
        with importing():
            from training.anchors import base_answers
            from training.config import config_of
            from training.data import load_pairs
            from training.encoding import encode_prompt
            from training.model import load_base
            from training.progress import bar

        pairs = load_pairs(data)
        base = load_base(model, four_bit=load_in_4bit)
        config = config_of(
            {
                "anchor_cache": cache,
                "anchor_temperature": temperature,
                "anchor_max_new_tokens": max_new_tokens,
                "anchor_answers": answers,
                "anchor_engine": engine,
                "seed": seed,
            }
        )
        prompts = {encode_prompt(base.tokenizer, pair.messages) for pair in pairs}
        with bar("base answers") as show:
            found = base_answers(base, sorted(prompts), config, on_progress=show)
        cut = sum(answer.finish_reason == "length" for of in found for answer in of)
        Console().print(f"{len(found)} prompts answered, {cut} of the answers cut for length.")


@contextmanager
def spoken_errors() -> Iterator[None]:
    """Turn what can go wrong into one sentence on stderr and an exit code."""
    try:
        yield
    except Stopped as error:
        _fail(str(error), code=130)
    except (TrainingError, AdapterError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("Stopped before the end; nothing half-done was left behind.", code=130)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _fail("No space is left on the disk; free some and run again.")
        where = f" ({error.filename})" if error.filename else ""
        _fail(f"{error.strerror or error}{where}.")


def _fail(sentence: str, *, code: int = 1) -> None:
    typer.secho(sentence, fg=typer.colors.RED, err=True)
    raise typer.Exit(code)


def file_and_settings(words: list[str]) -> tuple[str | None, dict[str, Any]]:
    """Tell the experiment file from `--name value` and `--name=value` settings."""
    file: str | None = None
    settings: dict[str, Any] = {}
    rest = iter(words)
    for word in rest:
        if not word.startswith("--"):
            if file is not None:
                raise ConfigError(f"'{word}' is one experiment file too many, after '{file}'.")
            file = word
            continue
        name, equals, value = word.removeprefix("--").partition("=")
        given = value if equals else next(rest, None)
        if given is None:
            raise ConfigError(f"The setting --{name} needs a value.")
        settings[name.replace("-", "_")] = given
    return file, settings
