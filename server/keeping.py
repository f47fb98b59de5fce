"""Answers on their way into the registry, for users who agreed and for experiments' users.

Owns a bounded queue and the one who writes it out. An answer is never delayed and never fails for
it: while one is sent, its pieces are only put aside; they are read and written afterwards, in a
thread. What does not fit into the queue (the database is away) is not kept, and counted. A server
that is killed loses what it has not written, at most `WRITE_SECONDS` of it. Nothing of a text is
ever logged.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

import structlog
from fastapi import Request
from starlette.responses import Response, StreamingResponse

from adapters.db import now
from adapters.errors import StoreError
from adapters.feedback import Answer, Feedback
from adapters.names import parse_ref
from adapters.view import RegistryView
from server.routing import Route
from server.transcripts import Piece, prompt_of, transcript_of

log = structlog.get_logger(__name__)

WRITE_SECONDS = 0.5
EXPIRE_SECONDS = 60.0
MOST_BYTES = 64 * 2**20
"""Of bodies and answers that wait to be written."""
LONGEST_ANSWER = 4 * 2**20
"""Bytes of an answer's body, with all that is around its text; what is longer is not kept."""
AT_ONCE = 100
"""Requests whose answers are written in one transaction."""


class Counts(Protocol):
    def kept(self, answers: int) -> None: ...

    def not_kept(self, requests: int) -> None: ...


@dataclass(slots=True)
class Exchange:
    """A request and as much of its answer as was sent."""

    user_id: str
    route: str
    label: str
    arm: str | None
    with_texts: bool
    body: bytes
    at: datetime
    pieces: list[Piece] = field(default_factory=list)
    size: int = 0

    def add(self, piece: Piece) -> None:
        self.size += len(piece)
        if self.size <= LONGEST_ANSWER:
            self.pieces.append(piece)

    def answers(self, lasting: timedelta) -> list[Answer]:
        """Raises ValueError, KeyError, TypeError for what no engine answers."""
        found = transcript_of(self.route, self.pieces)
        if found.completion_id is None:
            return []
        prompt = prompt_of(self.route, self.body) if self.with_texts else None
        experiment, _, arm = (self.arm or "").partition("/")
        name, version = (self.label, None) if self.label == "base" else parse_ref(self.label)
        return [
            Answer(
                self.user_id,
                found.completion_id,
                index,
                name,
                version,
                experiment or None,
                arm or None,
                prompt,
                said.text if prompt is not None else None,
                self.at,
                self.at + lasting,
            )
            for index, said in found.choices.items()
        ]


class Keeping:
    """One for the application; `run` writes."""

    def __init__(
        self, feedback: Feedback, view: RegistryView, lasting: timedelta, counts: Counts
    ) -> None:
        self._feedback = feedback
        self._view = view
        self._lasting = lasting
        self._counts = counts
        self._queue: list[Exchange] = []
        self._bytes = 0
        self._numbers = threading.Lock()  # held for no longer than it takes to add
        self._writing = threading.Lock()
        self._blind = False

    async def watch(
        self,
        request: Request,
        user_id: str | None,
        route: Route,
        response: Response,
        held: AsyncExitStack,
    ) -> None:
        """See to it that the answer is kept when it is out, if it is to be."""
        if user_id is None or response.status_code >= 400:
            return
        agreed = self._view.keeps_answers(user_id)
        if not agreed and route.arm is None:
            return
        body = await request.body() if agreed else b""  # read long since, and still there
        path = request.url.path
        exchange = Exchange(user_id, path, route.label, route.arm, agreed, body, now())
        if isinstance(response, StreamingResponse):
            response.body_iterator = _noted(response.body_iterator, exchange)
        else:
            exchange.add(bytes(response.body))
        held.callback(self._put, exchange)

    async def flush(self) -> None:
        """Write what waits, now."""
        await asyncio.to_thread(self.write)

    async def run(self) -> None:
        """Write, and remove what has expired, until cancelled; then write once more."""
        swept = -EXPIRE_SECONDS
        try:
            while True:
                await asyncio.sleep(WRITE_SECONDS)
                if self._queue:
                    await asyncio.to_thread(self.write)
                if time.monotonic() - swept >= EXPIRE_SECONDS:
                    swept = time.monotonic()
                    await asyncio.to_thread(self._expire)
        finally:
            self.write()

    def write(self) -> None:
        """Write what waits; what the database does not take goes on waiting."""
        with self._writing:
            while batch := self._queue[:AT_ONCE]:
                answers = [answer for exchange in batch for answer in self._read(exchange)]
                try:
                    self._counts.kept(self._feedback.keep(answers))
                except StoreError as error:
                    self._lost(error)
                    return
                except Exception as error:  # whatever it is, the next ones must be written
                    log.error("answers_not_kept", why=type(error).__name__)
                    self._counts.not_kept(len(batch))
                self._blind = False
                with self._numbers:
                    del self._queue[: len(batch)]
                    self._bytes -= sum(map(_cost, batch))

    def _put(self, exchange: Exchange) -> None:
        cost = _cost(exchange)
        with self._numbers:
            fits = exchange.size <= LONGEST_ANSWER and self._bytes + cost <= MOST_BYTES
            if fits:
                self._queue.append(exchange)
                self._bytes += cost
        if not fits:
            self._counts.not_kept(1)

    def _read(self, exchange: Exchange) -> list[Answer]:
        try:
            return exchange.answers(self._lasting)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.error("answer_not_read", route=exchange.route, why=type(error).__name__)
            self._counts.not_kept(1)
            return []

    def _expire(self) -> None:
        try:
            while self._feedback.expire():
                pass
        except StoreError as error:
            self._lost(error)

    def _lost(self, error: StoreError) -> None:
        if not self._blind:
            log.error("answers_wait", why=str(error))
        self._blind = True


async def _noted(pieces: AsyncIterable[Piece], exchange: Exchange) -> AsyncIterator[Piece]:
    async for piece in pieces:
        exchange.add(piece)
        yield piece


def _cost(exchange: Exchange) -> int:
    return len(exchange.body) + min(exchange.size, LONGEST_ANSWER) + 1024
