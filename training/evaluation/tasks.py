"""Tasks of lm-evaluation-harness by name, run by that package; here only their items are kept.

Owns what of its samples becomes an item: each document's metrics, so that figures have our
intervals and models are compared document by document. Refuses to know any task. The package is
optional, and is imported where it is asked for.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import ConfigError
from training.evaluation.asked import Asked
from training.evaluation.items import TaskItem
from training.evaluation.options import Harness
from training.logprobs import causal_lm
from training.progress import Tick, silent

PROMPT_SHOWN = 2_000
"""Characters of a document's prompt that are kept."""


@dataclass(frozen=True)
class TaskSettings:
    """Which tasks, and how they are asked."""

    names: tuple[str, ...]
    include_path: Path | None = None
    """A folder of task files besides the package's own."""
    fewshot: int | None = None
    chat_template: bool = False
    limit: int | None = None
    seed: int = 42

    def as_json(self) -> dict[str, Any]:
        """What the report keeps of it."""
        return {
            "tasks": list(self.names),
            "fewshot": self.fewshot,
            "chat_template": self.chat_template,
            "limit": self.limit,
        }


def task_settings(asked: Harness, limit: int | None, seed: int) -> TaskSettings | None:
    """Of the options; None where no task was asked for. Raises ConfigError."""
    if asked.tasks is None:
        return None
    names = (name.strip() for name in asked.tasks.split(","))
    known = tuple(dict.fromkeys(filter(None, names)))
    if not known:
        raise ConfigError("--tasks has no name; give one, or several with commas between them.")
    return TaskSettings(known, asked.include_path, asked.fewshot, asked.chat_template, limit, seed)


class Tasks:
    """The measure; documents become `items` when the first model is asked."""

    def __init__(self, settings: TaskSettings, items: list[TaskItem]) -> None:
        """Raises ConfigError where the package is missing or does not know a name."""
        self.settings = settings
        self.items = items
        self.manager = _manager(settings)
        self._places: dict[tuple[str, int], TaskItem] = {}

    def __call__(self, asked: Asked, tick: Tick = silent) -> None:
        """Every task, on the model in memory. Raises ConfigError for one that cannot be run."""
        from lm_eval.models.huggingface import HFLM

        network = causal_lm(asked.model)  # an adapter's layers are in it
        self.ask(asked.name, HFLM(pretrained=network, tokenizer=asked.tokenizer), tick)

    def ask(self, model: str, lm: Any, tick: Tick = silent) -> None:
        """Every task, on any model that the package knows to ask; the items are under `model`."""
        for name in self.settings.names:
            for task, samples in self._run(name, lm).items():
                for sample in samples:
                    self._keep(model, name, task, sample)
            tick(1)

    def _run(self, name: str, lm: Any) -> dict[str, list[dict[str, Any]]]:
        from lm_eval import simple_evaluate

        settings, seed = self.settings, self.settings.seed
        try:
            found = simple_evaluate(
                model=lm,
                tasks=[name],
                num_fewshot=settings.fewshot,
                limit=settings.limit,
                bootstrap_iters=0,
                apply_chat_template=settings.chat_template,
                task_manager=self.manager,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
        except Exception as error:  # a task's own code, the Hub, a server
            raise ConfigError(f"The task {name} cannot be run: {_sentence(error)}.") from error
        samples: dict[str, list[dict[str, Any]]] = (found or {}).get("samples", {})
        return samples

    def _keep(self, model: str, name: str, task: str, sample: dict[str, Any]) -> None:
        document = int(sample["doc_id"])
        item = self._places.get((task, document))
        if item is None:
            item = TaskItem(task=task, document=document, prompt=_prompt(sample))
            self._places[task, document] = item
            self.items.append(item)
        if name not in item.groups:
            item.groups.append(name)
        suffix = "" if sample["filter"] == "none" else f",{sample['filter']}"
        metrics = {
            f"{metric}{suffix}": float(sample[metric])
            for metric in sample["metrics"]
            if isinstance(sample[metric], bool | int | float)
        }
        if not metrics:
            raise ConfigError(f"The task {task} has no figure of single documents to compare.")
        item.metrics[model] = item.metrics.get(model, {}) | metrics


def _manager(settings: TaskSettings) -> Any:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ConfigError(
            "--tasks needs lm-evaluation-harness: run requirements/install.sh cpu eval."
        ) from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    include = settings.include_path
    if include is not None and not include.is_dir():
        raise ConfigError(f"There is no folder of tasks {include}.")
    manager = TaskManager(include_path=None if include is None else str(include))
    unknown = [name for name in settings.names if name not in manager.all_tasks]
    if unknown:
        raise ConfigError(
            f"There is no task {', '.join(unknown)}; lm-eval's are listed by"
            " `lm-eval ls tasks`, your own are found with --include-path."
        )
    return manager


def _prompt(sample: dict[str, Any]) -> str:
    """What the model was shown first, as far as it is text."""
    arguments: Sequence[Any] = sample.get("arguments") or [("",)]
    first = arguments[0][0] if arguments[0] else ""
    return str(first)[:PROMPT_SHOWN]


def _sentence(error: Exception) -> str:
    """The error's first line, without a full stop; of the Hub that is away, what to do as well."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")
    if not isinstance(error, ConnectionError):
        return text
    return (
        f"{text}; run it once where the Hugging Face Hub can be reached, with the same HF_HOME, or"
        " name a task of your own with --include-path"
    )
