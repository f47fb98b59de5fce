"""Tasks against a running server: what users get, over HTTP, adapter by adapter.

Owns how lm-evaluation-harness is told which adapter it speaks to, and the report. Refuses whatever
needs the model in memory, and a server of another base than the tokenizer's. An adapter is pinned
to the version that answers first, so that an activation in the middle cannot mix two; base and
adapters are named in the header, never guessed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from adapters.base import BaseModelInfo, describe_base
from training.errors import ConfigError
from training.evaluation.figures import complete
from training.evaluation.items import BASE, Items
from training.evaluation.packages import package_versions
from training.evaluation.results import BaseEntry, ModelEntry, Report
from training.evaluation.tasks import Tasks, TaskSettings
from training.progress import counting

HEADER = "X-Adapter-Id"
CONCURRENT = 8
LONGEST = 2048
"""Tokens of prompt and answer; a server's model with less says so itself."""


@dataclass(frozen=True)
class RunningServer:
    """A server of ours, a key, and the folder of its base model."""

    url: str
    key: str
    model: Path

    def pinned(self, adapter: str) -> str:
        """The version that answers for `adapter`, e.g. "alice/concise@3". Raises ConfigError."""
        wish = {"model": adapter, "prompt": "A", "max_tokens": 1}
        answer = self._ask("POST", "/v1/completions", adapter, json=wish)
        label = answer.headers.get(HEADER)
        if label is None or label.partition("@")[0] != adapter.partition("@")[0]:
            raise ConfigError(f"{self.url} was asked for {adapter} and {label} answered.")
        return str(label)

    def refuse_other_base(self, info: BaseModelInfo) -> None:
        """Raises ConfigError where the server's base is not the one in `model`."""
        card = self._ask("GET", f"/v1/models/{BASE}", BASE)
        try:
            theirs = card.json()["fingerprint"]
        except (ValueError, LookupError, TypeError):
            raise ConfigError(f"{self.url} does not say which base it serves.") from None
        if theirs != info.fingerprint:
            raise ConfigError(
                f"{self.url} serves the base {str(theirs)[:19]}…, and {self.model} is"
                f" {info.fingerprint[:19]}…: give the model that the server serves."
            )

    def headers(self, adapter: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}", HEADER: adapter}

    def _ask(self, method: str, path: str, adapter: str, **options: Any) -> httpx.Response:
        """The answer, which is no error. Raises ConfigError."""
        url, headers = self.url.rstrip("/") + path, self.headers(adapter)
        try:
            answer = httpx.request(method, url, headers=headers, timeout=120, **options)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ConfigError(f"{self.url} does not answer: {error}.") from error
        if not answer.is_success:
            raise ConfigError(f"{self.url} refuses {adapter}: {_reason(answer)}.")
        return answer

    def as_lm(self, adapter: str) -> Any:
        """The server with this adapter, as the harness asks models. The tokenizer is read here."""
        from lm_eval.models.openai_completions import LocalCompletionsAPI

        try:
            return LocalCompletionsAPI(
                base_url=f"{self.url.rstrip('/')}/v1/completions",
                model=adapter,
                tokenizer=str(self.model),
                tokenizer_backend="huggingface",
                header=self.headers(adapter),
                num_concurrent=CONCURRENT,
                max_length=LONGEST,
            )
        except ModuleNotFoundError as error:  # of lm-eval's own extra, "api"
            raise ConfigError(f"--on-server cannot ask the server: {error}") from error


def evaluate_served(
    server: RunningServer,
    adapters: Sequence[str],
    settings: TaskSettings,
    *,
    against: Sequence[str] = (BASE,),
    progress: bool = False,
) -> Report:
    """Ask the base and each adapter of the server every task; the report, without digests.

    Raises ConfigError, BaseModelError.
    """
    info = describe_base(server.model)
    items = Items()
    tasks = Tasks(settings, items.tasks)
    server.refuse_other_base(info)
    names = list(dict.fromkeys(server.pinned(adapter) for adapter in (BASE, *against, *adapters)))
    compared = [server.pinned(name) for name in against]
    for name in names:
        with counting(f"{name}: tasks" if progress else None, len(settings.names)) as tick:
            tasks.ask(name, server.as_lm(name), tick)
    report = Report(
        base=BaseEntry(name=info.name, fingerprint=info.fingerprint),
        models=[ModelEntry(name=name, served_form=name != BASE) for name in names],
        items=items,
        settings={"server": server.url, **settings.as_json()},
        seed=settings.seed,
        versions=package_versions(),
    )
    return complete(report, compared)


def _reason(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"]).rstrip(".")
    except (ValueError, LookupError, TypeError, RecursionError):
        return f"status {answer.status_code}"
