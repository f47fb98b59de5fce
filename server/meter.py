"""What one request took and used: observed once, read by whoever logs, counts, charges or traces.

Owns the `Meter`, the way to the present request's (`current`), and the ASGI middleware that begins
and ends it. Each fact is written by the one who knows it: the router its label, the pool waiting
and loading, the engine its sequences. Refuses to print, count or charge: that is the observers'.

Nothing is done for each token. The engine counts them for itself, and a meter keeps the engine's
own counters (`engine/sequences.py`), which also hold for an answer whose client has gone.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters.accounts import Caller

log = structlog.get_logger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
CLIENT_CLOSED = 499  # nginx's status for a client that left; nobody is there to read it


class Phase(StrEnum):
    """What a request is in; each lasts until the next one begins, the last one until the end."""

    RESOLVE = "resolve"
    """Which adapter is meant, and may he use it."""
    ADMIT = "admit"
    """Waiting for a turn."""
    LOAD = "load"
    """Waiting for the adapter to be read and to get its slot."""
    GENERATE = "generate"
    """In vLLM's hands, from the template to the last byte."""


class Outcome(StrEnum):
    OK = "ok"
    REFUSED = "refused"
    FAILED = "failed"
    """A status of 500 and above, or an answer that broke off."""
    ABORTED = "aborted"
    """The client has gone."""


class Sequence(Protocol):
    """One answer that the engine is asked for; `n` of them make a request."""

    @property
    def prompt_tokens(self) -> int:
        """0 for all but the first of the sequences that share a prompt."""

    @property
    def completion_tokens(self) -> int:
        """Generated up to now."""

    @property
    def first_token_at(self) -> float | None:
        """Seconds since the epoch; None while there is none."""

    @property
    def decode_seconds(self) -> float:
        """Between its first and its last token."""

    @property
    def in_flight(self) -> bool:
        """Whether the engine still works on it."""


@dataclass(slots=True)
class Meter:
    """One request. Times are seconds of `time.monotonic`, durations seconds."""

    request_id: str = ""
    method: str = ""
    began: float = field(default_factory=time.monotonic)
    began_at: float = field(default_factory=time.time)  # of the epoch, as the engine's clock
    ended: float | None = None
    route: str | None = None
    """The route's template, in which no name of a user or adapter stands."""
    caller: Caller | None = None
    label: str | None = None
    """What answered: "alice/concise@3", or "base"; None where nothing was selected."""
    cold: bool | None = None
    """Whether the adapter had to be loaded; None for the base."""
    status: int = 0
    complete: bool = False
    """Whether the last byte was given away."""
    longest_pause: float | None = None
    """Between two parts of a streamed answer."""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Put on the answer, whoever makes it."""
    phases: list[tuple[Phase, float]] = field(default_factory=list)
    sequences: list[Sequence] = field(default_factory=list)
    told: Callable[[], tuple[int, int] | None] = lambda: None
    """Prompt and completion tokens as the answer states them; None before its end."""
    _part_at: float | None = None

    def enter(self, phase: Phase) -> None:
        """`phase` begins now, and the one before it ends."""
        self.phases.append((phase, time.monotonic()))

    def part(self) -> None:
        """A part of the answer's body goes out."""
        now = time.monotonic()
        if self._part_at is not None:
            self.longest_pause = max(self.longest_pause or 0.0, now - self._part_at)
        self._part_at = now

    def phase_ends(self) -> list[tuple[Phase, float, float]]:
        """Each phase with its beginning and its end, in order."""
        begins = [began for _, began in self.phases]
        ends = [*begins[1:], self.ended or time.monotonic()][: len(begins)]
        phases = [phase for phase, _ in self.phases]
        return list(zip(phases, begins, ends, strict=True))

    def seconds_in(self, phase: Phase) -> float | None:
        """How long it was in this phase; None where it never was."""
        if all(entered is not phase for entered, _ in self.phases):
            return None
        return sum(end - began for entered, began, end in self.phase_ends() if entered is phase)

    @property
    def seconds(self) -> float:
        return (self.ended or time.monotonic()) - self.began

    @property
    def adapter_id(self) -> str | None:
        """The label without its version."""
        return None if self.label is None else self.label.partition("@")[0]

    @property
    def usage(self) -> tuple[int, int]:
        """Prompt and completion tokens: what the client was told, else what the engine has done.

        The two are the same but for beam search, which costs more than it says.
        """
        return self.told() or (
            sum(one.prompt_tokens for one in self.sequences),
            sum(one.completion_tokens for one in self.sequences),
        )

    @property
    def first_token_seconds(self) -> float | None:
        """From the request's first byte to the first token of any sequence; None without one.

        The engine tells it by the clock of the day: should that jump, this is wrong once, and is
        kept within the request's own duration.
        """
        seen = [at for one in self.sequences if (at := one.first_token_at) is not None]
        return min(max(min(seen) - self.began_at, 0.0), self.seconds) if seen else None

    @property
    def inter_token_seconds(self) -> float | None:
        """The mean time between two tokens of a sequence; None where none has two."""
        pauses = sum(max(one.completion_tokens - 1, 0) for one in self.sequences)
        return sum(one.decode_seconds for one in self.sequences) / pauses if pauses else None

    @property
    def outcome(self) -> Outcome:
        if self.status == CLIENT_CLOSED or (self.status and not self.complete):
            return Outcome.ABORTED
        if self.status >= 500 or not self.status or any(one.in_flight for one in self.sequences):
            return Outcome.FAILED
        return Outcome.REFUSED if self.status >= 400 else Outcome.OK


_present: ContextVar[Meter | None] = ContextVar("meter", default=None)


def current() -> Meter:
    """The meter of the request that is being answered; outside of one, a meter nobody reads."""
    return _present.get() or Meter()


def metered() -> Meter | None:
    """The meter of the request that is being answered, None outside of one."""
    return _present.get()


Observer = Callable[[Meter], None]
"""Called once when a request has ended, on the event loop: it must not wait."""


class Metering:
    """ASGI middleware: gives each request a meter and an id, and shows it to the observers.

    The id is the client's `X-Request-Id` where that is short and plain, and stands on the answer.
    The engine does not see it: ids of completions are the server's own, and nobody's to choose.
    """

    def __init__(self, app: ASGIApp, observers: Iterable[Observer] = ()) -> None:
        self.app = app
        self.observers = tuple(observers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        meter = Meter(_request_id(Headers(scope=scope)), scope["method"])
        meter.headers.append((b"x-request-id", meter.request_id.encode()))
        kept = [pair for pair in scope["headers"] if pair[0] != b"x-request-id"]
        scope = {**scope, "headers": kept}

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.body":
                if message.get("body"):
                    meter.part()
                meter.complete = not message.get("more_body", False)
            elif message["type"] == "http.response.start":
                meter.status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *meter.headers]}
            await send(message)

        token = _present.set(meter)
        try:
            await self.app(scope, receive, noted)
        finally:
            _present.reset(token)
            self._end(meter, scope)

    def _end(self, meter: Meter, scope: Scope) -> None:
        meter.ended = time.monotonic()
        meter.route = getattr(scope.get("route"), "path", None)
        meter.caller = scope.get("state", {}).get("caller")
        for observe in self.observers:
            try:
                observe(meter)
            except Exception as error:  # the answer is out: what is lost is a line or a number
                log.error("not_observed", request_id=meter.request_id, exc_info=error)


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
