"""Streamed requests as a client sees them: when each token came.

Owns one request over HTTP and many beside each other; what is made of the times is the
benchmarks'. aiohttp, since a client that needs more of the processor than the server measures
itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

TIMEOUT = aiohttp.ClientTimeout(total=300)
GREEDY = {"temperature": 0, "ignore_eos": True, "stream": True}


@dataclass
class Answer:
    """Times of one request, seconds on `time.monotonic`'s clock."""

    sent: float = 0.0
    tokens: list[float] = field(default_factory=list)
    status: int = 0
    done: bool = False
    """Whether it came to its end, and not to an error."""

    @property
    def to_first_token(self) -> float:
        return self.tokens[0] - self.sent

    @property
    def ended(self) -> float:
        return self.tokens[-1]


def session(headers: Mapping[str, str]) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=0)
    return aiohttp.ClientSession(headers=headers, timeout=TIMEOUT, connector=connector)


def completion(model: str, prompt: Sequence[int], tokens: int) -> tuple[str, dict[str, Any]]:
    """Route and body of a completion of token ids."""
    body = {"model": model, "prompt": list(prompt), "max_tokens": tokens, **GREEDY}
    return "/v1/completions", body


def chat(model: str, question: str, tokens: int) -> tuple[str, dict[str, Any]]:
    """Route and body of a chat of one turn."""
    messages = [{"role": "user", "content": question}]
    body = {"model": model, "messages": messages, "max_tokens": tokens, **GREEDY}
    return "/v1/chat/completions", body


async def stream(
    client: aiohttp.ClientSession,
    url: str,
    request: tuple[str, dict[str, Any]],
    answer: Answer | None = None,
    headers: Mapping[str, str] = {},
) -> Answer:
    """Send the request and note when each token comes; `answer` can be watched meanwhile."""
    path, body = request
    answer = answer or Answer()
    answer.sent = time.monotonic()
    async with client.post(url + path, json=body, headers=headers) as response:
        answer.status = response.status
        async for line in response.content:
            if line.startswith(b"data: {") and b'"role"' not in line:  # a chat's first says no word
                answer.tokens.append(time.monotonic())
            answer.done = answer.done or line.startswith(b"data: [DONE]")
    return answer


def whole(answer: Answer) -> Answer:
    """The answer, where it is one; a benchmark of refusals measures nothing."""
    if not (answer.status == 200 and answer.done and answer.tokens):
        raise SystemExit(
            f"a request was answered with {answer.status} and {len(answer.tokens)} tokens"
        )
    return answer


async def at_once(
    client: aiohttp.ClientSession,
    url: str,
    requests: Sequence[tuple[str, dict[str, Any]]],
    concurrency: int,
) -> list[Answer]:
    """All requests, so many at a time: whoever has his answer sends the next one."""
    answers: list[Answer] = []
    left: Iterator[tuple[str, dict[str, Any]]] = iter(requests)

    async def ask() -> None:
        for request in left:
            answers.append(await stream(client, url, request))

    await asyncio.gather(*(ask() for _ in range(concurrency)))
    return answers
