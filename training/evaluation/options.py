"""The flags of `bapo eval`, in the groups in which they are used and shown.

Owns their names, their help and their defaults; each group is one parameter of the verb and goes as
it is to whoever reads it. Refuses work, and imports nothing large: help must answer at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

TESTED, ASKED, TASKS = "Who is tested", "What is asked", "lm-evaluation-harness"
JUDGES, GATE, SHOWN = "Judges", "The gate", "What comes out"


def _option(panel: str, help_text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=panel, **more)


@dataclass(frozen=True)
class Tested:
    """The models: folders, names on a server, or the versions of one adapter."""

    adapter: Annotated[
        list[str] | None,
        _option(TESTED, "Adapter folder (with --on-server its name); several by repeating it."),
    ] = None
    against: Annotated[
        list[str] | None,
        _option(TESTED, "What they are compared with: base (the default) or other adapters."),
    ] = None
    history: Annotated[
        list[str] | None,
        _option(
            TESTED,
            "An adapter of the registry, all its versions; or folders in order, by repeating it:"
            " which one lost something? Then the end is 1.",
        ),
    ] = None


@dataclass(frozen=True)
class Files:
    """What every model is asked, by file."""

    pairs: Annotated[str | None, _option(ASKED, "Preference pairs that were not trained on.")] = (
        None
    )
    facts: Annotated[str | None, _option(ASKED, "Questions with answers, JSONL.")] = None
    choices: Annotated[
        str | None, _option(ASKED, "Multiple choice: JSONL, prompt, choices, answer.")
    ] = None
    text: Annotated[
        list[Path] | None, _option(ASKED, "A text for perplexity; several by repeating it.")
    ] = None
    prompts: Annotated[
        Path | None, _option(ASKED, "The user's prompts, for drift; pairs will do.")
    ] = None
    general_prompts: Annotated[
        Path | None, _option(ASKED, "Prompts that are nobody's, for drift.")
    ] = None
    refusals: Annotated[Path | None, _option(ASKED, "Prompts that should be refused, JSONL.")] = (
        None
    )

    @property
    def any(self) -> bool:
        return any(vars(self).values())


@dataclass(frozen=True)
class Asking:
    """How they are asked."""

    limit: Annotated[int | None, _option(ASKED, "The first so many of each file.", min=1)] = None
    stride: Annotated[int | None, _option(ASKED, "Tokens a text's window moves on by.", min=1)] = (
        None
    )
    max_new_tokens: Annotated[int, _option(ASKED, "Longest answer, tokens.", min=1)] = 48
    seed: Annotated[int, _option(ASKED, "Seed of everything random.")] = 42


@dataclass(frozen=True)
class Harness:
    """Tasks of lm-evaluation-harness."""

    tasks: Annotated[
        str | None, _option(TASKS, "Tasks of lm-evaluation-harness, e.g. mmlu,arc_easy.")
    ] = None
    include_path: Annotated[Path | None, _option(TASKS, "Folder of your own task files.")] = None
    fewshot: Annotated[int | None, _option(TASKS, "Examples before each question.")] = None
    chat_template: Annotated[bool, _option(TASKS, "Ask as in a chat.", "--chat-template")] = False
    on_server: Annotated[
        bool,
        _option(TASKS, "Ask the tasks of the running server of --server and --key.", "--on-server"),
    ] = False


@dataclass(frozen=True)
class Judges:
    """Who says which of two answers is better, and what a refusal is."""

    judge: Annotated[
        str | None,
        _option(
            JUDGES,
            "Whose answer to the pairs' prompts wins: exact, regex:PATTERN, module:function,"
            " or the URL of an OpenAI-compatible endpoint (its key in BAPO_JUDGE_KEY).",
        ),
    ] = None
    judge_model: Annotated[str | None, _option(JUDGES, "The endpoint's model.")] = None
    judge_instruction: Annotated[str | None, _option(JUDGES, "What the judge looks for.")] = None
    judge_json: Annotated[
        bool, _option(JUDGES, "Force its verdict into a JSON schema.", "--judge-json")
    ] = False
    refusals_by: Annotated[
        str | None,
        _option(
            JUDGES,
            "What is a refusal: a file of regular expressions, module:function, or judge;"
            " without, a list of common phrases.",
        ),
    ] = None

    @property
    def spelled(self) -> str | None:
        """The judge in words, for the report."""
        words: Sequence[str | None] = (self.judge, self.judge_model, self.judge_instruction)
        return " ".join(filter(None, words)) or None


@dataclass(frozen=True)
class Gating:
    """Thresholds, and who signs."""

    gate: Annotated[
        Path | None,
        _option(GATE, "Thresholds, YAML: judge, sign the verdict, end with 1 if it fails."),
    ] = None
    gate_key: Annotated[
        Path | None, _option(GATE, "PEM file of the signing key; default: this user's own.")
    ] = None


@dataclass(frozen=True)
class Output:
    """Where the report goes."""

    report: Annotated[Path | None, _option(SHOWN, "Folder for report.json and report.html.")] = None
    as_json: Annotated[bool, _option(SHOWN, "The report on stdout.", "--json")] = False
