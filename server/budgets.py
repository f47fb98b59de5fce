"""Tokens of a calendar month: kept in the database, counted by every server, checked from memory.

Owns what this server has used and not yet written, and what it last read of each user's month. A
request never waits for a write; a reading older than `FRESH_SECONDS` is made anew before it counts.
So n servers see one another's use within seconds, and a user can go over a budget by about as much
as he uses meanwhile. A server that is killed forgets what it has not written, at most
`WRITE_SECONDS` of it. While the database is away, what is known goes on counting, and is written
when it is back. A month is of UTC, by this machine's clock.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

import structlog
from starlette.concurrency import run_in_threadpool

from adapters.allowances import Allowances
from adapters.errors import StoreError

log = structlog.get_logger(__name__)

WRITE_SECONDS = 1.0
FRESH_SECONDS = 5.0
MOST_READINGS = 100_000


@dataclass(slots=True)
class _Reading:
    tokens: int
    at: float


class Budgets:
    """One for the application; `run` writes."""

    def __init__(self, allowances: Allowances) -> None:
        self._allowances = allowances
        self._unwritten: dict[tuple[str, str], tuple[int, int]] = {}
        self._readings: OrderedDict[tuple[str, str], _Reading] = OrderedDict()
        self._database = threading.Lock()  # a reading is of before a write, or of after it
        self._numbers = threading.Lock()  # held for no longer than it takes to add
        self._blind = False

    def charge(self, user_id: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Count what was used."""
        at = this_month(), user_id
        with self._numbers:
            prompt, completion = self._unwritten.get(at, (0, 0))
            self._unwritten[at] = prompt + prompt_tokens, completion + completion_tokens

    async def spent(self, user_id: str) -> int:
        """The user's tokens of this month, as far as this server can know them."""
        at = this_month(), user_id
        reading = self._readings.get(at)
        if reading is None or time.monotonic() - reading.at > FRESH_SECONDS:
            await run_in_threadpool(self._read, at)
        with self._numbers:
            reading = self._readings.get(at)
            return (reading.tokens if reading else 0) + sum(self._unwritten.get(at, (0, 0)))

    async def run(self) -> None:
        """Write until cancelled, and then once more."""
        try:
            while True:
                await asyncio.sleep(WRITE_SECONDS)
                if self._unwritten:
                    await asyncio.to_thread(self.write)
        finally:
            self.write()

    def write(self) -> None:
        """Write what is not written yet; what cannot be stays."""
        with self._database:
            with self._numbers:
                taken = dict(self._unwritten)
            for month in {month for month, _ in taken}:
                tokens = {user: n for (of, user), n in taken.items() if of == month}
                try:
                    self._allowances.add(month, tokens)
                except StoreError as error:
                    self._lost(error)
                    return
                self._blind = False
                with self._numbers:
                    for user, written in tokens.items():
                        self._settle((month, user), written)

    def _settle(self, at: tuple[str, str], written: tuple[int, int]) -> None:
        """What was unwritten is in the database, and in what was read of it."""
        if reading := self._readings.get(at):
            reading.tokens += sum(written)
        prompt, completion = self._unwritten.pop(at)
        if (prompt, completion) != written:  # more has come meanwhile
            self._unwritten[at] = prompt - written[0], completion - written[1]

    def _read(self, at: tuple[str, str]) -> None:
        month, user_id = at
        with self._database:
            known = self._readings.get(at)
            try:
                tokens = self._allowances.spent(user_id, month).tokens
            except StoreError as error:
                self._lost(error)
                tokens = known.tokens if known else 0
            with self._numbers:
                self._readings[at] = _Reading(tokens, time.monotonic())
                self._readings.move_to_end(at)
                if len(self._readings) > MOST_READINGS:
                    self._readings.popitem(last=False)

    def _lost(self, error: StoreError) -> None:
        if not self._blind:
            log.error("budgets_not_kept", why=str(error))
        self._blind = True


def this_month() -> str:
    return _month(int(time.time()) // 60)


@lru_cache(maxsize=2)  # it is asked for twice a request
def _month(minute: int) -> str:
    today = time.gmtime(60 * minute)
    return f"{today.tm_year:04}-{today.tm_mon:02}"


def seconds_left_of_the_month() -> float:
    now = datetime.now(UTC)
    year, month = now.year + now.month // 12, now.month % 12 + 1
    return (datetime(year, month, 1, tzinfo=UTC) - now).total_seconds()
