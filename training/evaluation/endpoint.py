"""Questions to an OpenAI-compatible endpoint: many at once, but not too many, and none for ever.

Owns HTTP: the key, time-outs, retries and how many questions are under way. Refuses what is asked
and what an answer means. A question that stays without an answer is a `Reply` that says why and no
error, so that an hour of other work is not lost to it; `check` says beforehand what is set wrong.
"""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from training.errors import ConfigError
from training.progress import Tick, silent

KEY_VARIABLE = "BAPO_JUDGE_KEY"
AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
LONGEST_PAUSE = 30.0


@dataclass(frozen=True)
class Reply:
    """What was said, or why nothing was."""

    text: str | None
    problem: str | None = None

    def __str__(self) -> str:
        return self.text if self.text is not None else f"({self.problem})"


@dataclass(frozen=True)
class Endpoint:
    """Where questions go, e.g. `http://127.0.0.1:8000/v1`, and how patient we are."""

    url: str
    model: str
    schema: dict[str, Any] | None = None
    """JSON schema that the answer is forced into (OpenAI's response_format), if any."""
    max_tokens: int = 512
    concurrency: int = 8
    timeout: float = 120.0
    """Seconds for one try."""
    tries: int = 5
    first_pause: float = 0.5
    """Seconds before the second try; doubled for each further one, unless the server says when."""

    def check(self) -> None:
        """One small question. Raises ConfigError where the endpoint cannot be used at all."""
        (reply,) = self.ask(["Say A."])
        if reply.problem is not None:
            raise ConfigError(f"The judge at {self.url} does not answer: {reply.problem}.")

    def ask(self, questions: Sequence[str], tick: Tick = silent) -> list[Reply]:
        """The reply to each question, in their order."""
        try:
            return asyncio.run(self._ask_all(questions, tick))
        except httpx.InvalidURL as error:
            return [Reply(None, f"it is no URL, {error}")] * len(questions)

    async def _ask_all(self, questions: Sequence[str], tick: Tick) -> list[Reply]:
        key = os.environ.get(KEY_VARIABLE, "")
        places = asyncio.Semaphore(self.concurrency)
        async with httpx.AsyncClient(
            base_url=self.url.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=self.timeout,
        ) as client:

            async def ask(question: str) -> Reply:
                async with places:
                    reply = await self._patiently(client, question)
                tick(1)
                return reply

            return list(await asyncio.gather(*map(ask, questions)))

    async def _patiently(self, client: httpx.AsyncClient, question: str) -> Reply:
        pause, reply = self.first_pause, Reply(None, "it was never asked")
        for attempt in range(self.tries):
            reply, again, asked_pause = await self._once(client, question)
            if not again or attempt == self.tries - 1:
                break
            await asyncio.sleep(min(LONGEST_PAUSE, max(pause, asked_pause)))
            pause *= 2
        return reply

    async def _once(self, client: httpx.AsyncClient, question: str) -> tuple[Reply, bool, float]:
        """The reply, whether it is worth another try, and after how many seconds at least."""
        try:
            answer = await client.post("chat/completions", json=self._body(question))
        except httpx.HTTPError as error:
            return Reply(None, type(error).__name__), True, 0.0
        if answer.is_success:
            text = _text(answer)
            return Reply(text, None if text is not None else "its answer has no text"), False, 0.0
        problem = f"status {answer.status_code}, {answer.text[:200].strip()}"
        return Reply(None, problem), answer.status_code in AGAIN, _retry_after(answer)

    def _body(self, question: str) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
        }
        if self.schema is not None:
            wanted = {"name": "verdict", "schema": self.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": wanted}
        return body


def _text(answer: httpx.Response) -> str | None:
    """The first choice's text; None for whatever is not a chat completion."""
    try:
        text = answer.json()["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return text if isinstance(text, str) else None


def _retry_after(answer: httpx.Response) -> float:
    try:
        return float(answer.headers.get("Retry-After", 0))
    except ValueError:  # a date, which a pause of our own does as well
        return 0.0
