"""May this caller ask now? The limits of users and keys, before a body is read.

Owns the ASGI middleware that puts together what holds for a caller (the server's defaults, the
exceptions that an administrator made for the user), asks `rates.py` and `budgets.py`, counts the
requests in flight, and charges what was used when a request has ended. Holds for every POST and PUT
under /v1/; admin keys have no limits. Requests in flight are counted by each server for itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from adapters.accounts import Caller, Role
from adapters.allowances import Allowance
from adapters.view import RegistryView
from server.budgets import Budgets, seconds_left_of_the_month
from server.errors import RateLimited, error_response
from server.meter import current
from server.metrics import Metrics
from server.rates import Holder, Rate, Rates, headers_of

BUSY_SECONDS = 1.0


class Limits:
    """What holds, and for whom."""

    def __init__(self, view: RegistryView, everybody: Allowance, key: Allowance) -> None:
        self._view = view
        self._everybody = everybody
        self._key = key

    def of(self, caller: Caller) -> Allowance:
        """The bounds on the caller's user; none on a key that speaks for nobody."""
        if caller.user_id is None:
            return Allowance()
        exceptions = self._view.allowance(caller.user_id)
        return exceptions.or_else(self._everybody) if exceptions else self._everybody

    def rates(self, caller: Caller, user: Allowance) -> Sequence[Rate]:
        found: list[Rate] = []
        holders: tuple[tuple[Holder, str | None, Allowance], ...] = (
            ("user", caller.user_id, user),
            ("key", caller.key_id, self._key),
        )
        for holder, name, bounds in holders:
            if name is None:
                continue
            if bounds.requests_per_minute is not None:
                found.append(Rate("requests", holder, name, bounds.requests_per_minute))
            if bounds.tokens_per_minute is not None:
                found.append(Rate("tokens", holder, name, bounds.tokens_per_minute))
        return found


class Limiting:
    """ASGI middleware, inside of authentication and of the meter."""

    def __init__(
        self, app: ASGIApp, limits: Limits, rates: Rates, budgets: Budgets, metrics: Metrics
    ) -> None:
        self.app = app
        self._limits = limits
        self._rates = rates
        self._budgets = budgets
        self._metrics = metrics
        self._in_flight: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _is_limited(scope):
            await self.app(scope, receive, send)
            return
        caller: Caller = scope["state"]["caller"]
        allowance = self._limits.of(caller)
        rates = self._limits.rates(caller, allowance)
        try:
            await self._admit(caller, allowance, rates)
        except RateLimited as error:
            self._metrics.refused(error.limit)
            await error_response(error)(scope, receive, send)
            return
        user = caller.user_id
        if user is not None:
            self._in_flight[user] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            if user is not None:
                self._leave(user)
            await self._charge(caller, rates)

    async def _admit(self, caller: Caller, allowance: Allowance, rates: Sequence[Rate]) -> None:
        """Raises RateLimited."""
        user = caller.user_id
        if user is not None and allowance.tokens_per_month is not None:
            spent = await self._budgets.spent(user)
            if spent >= allowance.tokens_per_month:
                raise RateLimited(
                    f"the {allowance.tokens_per_month} tokens of this month are used up:"
                    " ask the administrator for more",
                    limit="tokens_per_month",
                    type="insufficient_quota",
                    code="insufficient_quota",
                    retry_after=seconds_left_of_the_month(),
                )
        if rates:
            standings = await self._rates.admit(rates)
            told = ((name.encode(), value.encode()) for name, value in headers_of(standings))
            current().headers.extend(told)
        # Last, with no wait before the place is taken.
        bound = allowance.streams
        if user is not None and bound is not None and self._in_flight[user] >= bound:
            raise RateLimited(
                f"{bound} requests of this user are open: wait until one has ended",
                limit="streams",
                type="requests",
                retry_after=BUSY_SECONDS,
            )

    def _leave(self, user: str) -> None:
        self._in_flight[user] -= 1
        if not self._in_flight[user]:
            del self._in_flight[user]  # or every user ever seen would stay

    async def _charge(self, caller: Caller, rates: Sequence[Rate]) -> None:
        prompt, completion = current().usage
        if not prompt:
            return
        if caller.user_id is not None:
            self._budgets.charge(caller.user_id, prompt, completion)
        await self._rates.charge(rates, prompt + completion)


def _is_limited(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] not in ("POST", "PUT"):
        return False
    return scope["path"].startswith("/v1/") and scope["state"]["caller"].role is not Role.ADMIN
