"""How many requests and tokens in a minute: counted over a sliding window, here or in Redis.

Owns the counting, by the `limits` library's sliding windows where it is shared and by `windows.py`
where it is not, and what is told to the client about it. Refuses to know whose the limits are
(`limiting.py`) and budgets (`budgets.py`).

**Tokens are charged when they are known**, after the answer, and a request is let in while any are
left. So a user can go over by what his running requests still use, at most `streams` times the
longest context, and pays for it: what was used counts in full, and the next request waits until the
window has come down again. The other way, reserving `max_tokens` in advance, refuses people for
tokens that they never use, and would need the prompt tokenised before its turn.

**Without Redis** (a time-out, a restart) every server goes on by itself with windows in its memory:
nobody is locked out, nobody is without a limit, and for so long n servers allow n times as much.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import structlog
from limits import RateLimitItemPerMinute
from limits.aio.storage.redis import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from server.errors import RateLimited
from server.windows import WINDOW, Counted, Windows

log = structlog.get_logger(__name__)

REDIS_SECONDS = 0.5
"""A Redis that does not answer for so long is not there, for `AWAY_SECONDS`."""
AWAY_SECONDS = 5.0

Kind = Literal["requests", "tokens"]
Holder = Literal["user", "key"]


class Rate(NamedTuple):
    """At most `limit` of its kind in a minute for whoever is called `key`."""

    kind: Kind
    holder: Holder
    key: str
    limit: int


class _PerMinute(RateLimitItemPerMinute):
    """One window whatever the limit is, so that a new limit does not begin anew."""

    def key_for(self, *identifiers: bytes | str | float) -> str:
        return "/".join((self.namespace, *map(str, identifiers)))


UNBOUNDED = 2**53


class Standing(NamedTuple):
    """How far a rate is used up."""

    rate: Rate
    remaining: int
    wait: float
    """Seconds until one more is free."""
    reset: float
    """Seconds until all of it is free."""


class Rates:
    """Counts of everybody; used from one event loop."""

    def __init__(self, redis_url: str | None = None) -> None:
        self._local = Windows()
        self._shared: SlidingWindowCounterRateLimiter | None = None
        self._away_until = -math.inf
        self._redis: RedisStorage | None = None
        if redis_url:
            self._redis = RedisStorage(
                f"async+{redis_url}",
                implementation="redispy",
                socket_timeout=REDIS_SECONDS,
                socket_connect_timeout=REDIS_SECONDS,
            )
            self._shared = SlidingWindowCounterRateLimiter(self._redis)

    async def close(self) -> None:
        if self._redis is not None:
            bridge: Any = self._redis.bridge  # the library itself never closes it
            await bridge.storage.aclose()

    async def admit(self, rates: Sequence[Rate]) -> Sequence[Standing]:
        """Count a request and say where it leaves its rates. Raises RateLimited, uncounted."""
        standings = []
        # Tokens first: they are only looked at, so whoever has none left uses up no request.
        for rate in sorted(rates, key=lambda rate: rate.kind == "requests"):
            admitted = rate.kind == "tokens" or await self._hit(rate, 1)
            standing = await self._standing(rate)
            if not admitted or (rate.kind == "tokens" and not standing.remaining):
                raise _refusal(standing)
            standings.append(standing)
        return standings

    async def charge(self, rates: Sequence[Rate], tokens: int) -> None:
        """Count tokens that were used, also beyond the limit."""
        for rate in rates:
            if rate.kind == "tokens" and tokens:
                await self._hit(rate, tokens, bounded=False)

    async def _hit(self, rate: Rate, count: int, *, bounded: bool = True) -> bool:
        limit = rate.limit if bounded else UNBOUNDED
        if shared := self._reachable():
            try:
                return await shared.hit(_item(limit), _key(rate), cost=count)
            except Exception as error:
                self._lost(error)
        return self._local.hit(_key(rate), count, limit)

    async def _standing(self, rate: Rate) -> Standing:
        if self._redis is not None and self._reachable():
            try:
                key = _item(UNBOUNDED).key_for(_key(rate))
                return _read(rate, Counted(*await self._redis.get_sliding_window(key, WINDOW)))
            except Exception as error:
                self._lost(error)
        return _read(rate, self._local.read(_key(rate)))

    def _reachable(self) -> SlidingWindowCounterRateLimiter | None:
        return self._shared if time.monotonic() >= self._away_until else None

    def _lost(self, error: Exception) -> None:
        self._away_until = time.monotonic() + AWAY_SECONDS
        log.error("limits_not_shared", retry_in_seconds=AWAY_SECONDS, why=type(error).__name__)

    @property
    def shared(self) -> bool:
        """False while servers that should count together count for themselves."""
        return self._shared is None or self._reachable() is not None


def _key(rate: Rate) -> str:
    return f"{rate.kind}/{rate.holder}/{rate.key}"


def _item(limit: int) -> _PerMinute:
    return _PerMinute(limit, namespace="bapo")


def _read(rate: Rate, counted: Counted) -> Standing:
    """A standing from the counts of the last window and of the one that runs.

    The last one's weigh less and less until the running one ends, and then the running one's do.
    """
    previous, previous_left, current, current_left = counted
    used = previous * previous_left / WINDOW + current
    left = min(max(current_left - WINDOW, 0.0), float(WINDOW))
    remaining = max(0, rate.limit - math.floor(used))
    wait = 0.0 if remaining else _until(max(rate.limit - 1, 0), previous, current, left)
    return Standing(rate, remaining, wait, _until(0, previous, current, left))


def _until(target: int, previous: int, current: int, left: float) -> float:
    """Seconds until no more than `target` count, `left` being what the running window has left."""
    if previous * left / WINDOW + current <= target:
        return 0.0
    if current <= target:
        return left - (target - current) * WINDOW / previous
    return left + WINDOW * (1 - target / current)


def _refusal(standing: Standing) -> RateLimited:
    rate = standing.rate
    return RateLimited(
        f"this {rate.holder} may use {rate.limit} {rate.kind} a minute and has used them:"
        f" try again in {max(1, math.ceil(standing.wait))} seconds",
        limit=f"{rate.holder}_{rate.kind}_per_minute",
        type=rate.kind,
        retry_after=standing.wait,
        headers=headers_of([standing]),
    )


def headers_of(standings: Sequence[Standing]) -> list[tuple[str, str]]:
    """OpenAI's headers, of each kind for the rate that has the least left."""
    tightest: dict[Kind, Standing] = {}
    for one in standings:
        known = tightest.get(one.rate.kind)
        if known is None or one.remaining < known.remaining:
            tightest[one.rate.kind] = one
    return [
        pair
        for kind, one in tightest.items()
        for pair in (
            (f"x-ratelimit-limit-{kind}", str(one.rate.limit)),
            (f"x-ratelimit-remaining-{kind}", str(one.remaining)),
            (f"x-ratelimit-reset-{kind}", f"{one.reset:.3f}s"),
        )
    ]
