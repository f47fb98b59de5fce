"""Minutes and months, counted: sliding windows, a real Redis that goes away, a real database."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from adapters.allowances import Allowance
from adapters.errors import InvalidName, StoreError
from adapters.registry import Registry, open_registry
from adapters.view import RegistryView
from server import rates as rates_module
from server.budgets import Budgets, seconds_left_of_the_month, this_month
from server.errors import RateLimited
from server.rates import Rate, Rates, Standing, _read, headers_of
from server.windows import MOST_KEYS, Counted, Windows

from redis_server import redis_server

REQUESTS = Rate("requests", "user", "ann", 3)
TOKENS = Rate("tokens", "user", "ann", 100)


async def admitted(rates: Rates, *wanted: Rate) -> bool:
    try:
        await rates.admit(wanted)
    except RateLimited:
        return False
    return True


def test_a_window_slides() -> None:
    now = 600.0
    windows = Windows(lambda: now)

    def hits(count: int) -> int:
        return sum([windows.hit("k", 1, 6) for _ in range(count)])

    assert hits(10) == 6
    now = 660.0  # all of them still count, since they may have been made a moment ago
    assert hits(10) == 0
    now = 690.0  # half of them
    assert hits(10) == 3
    now = 1000.0
    assert hits(10) == 6
    now = 10.0  # a clock that goes back locks nobody out
    assert hits(10) == 6


def test_windows_are_bounded() -> None:
    windows = Windows()
    for number in range(MOST_KEYS + 10):
        windows.hit(f"k{number}", 1, 1)
    assert len(windows) == MOST_KEYS


@pytest.mark.parametrize(
    ("previous", "current", "left", "remaining", "wait", "reset"),
    [
        (0, 0, 30.0, 10, 0.0, 0.0),
        (0, 10, 30.0, 0, 36.0, 90.0),  # in the next window 10 weigh 9 after 6 s
        (10, 0, 60.0, 0, 6.0, 60.0),
        (20, 5, 30.0, 0, 18.0, 90.0),  # 4 more may stay of 20, of which 10 do now
        (0, 90, 60.0, 0, 114.0, 120.0),  # in debt
    ],
)
def test_how_long_to_wait(
    previous: int, current: int, left: float, remaining: int, wait: float, reset: float
) -> None:
    rate = Rate("requests", "user", "ann", 10)
    standing = _read(rate, Counted(previous, left if previous else 0.0, current, left + 60))
    assert standing.remaining == remaining
    assert standing.wait == pytest.approx(wait)
    assert standing.reset == pytest.approx(reset)


def test_requests_and_tokens() -> None:
    async def scene() -> None:
        rates = Rates()
        assert [await admitted(rates, REQUESTS, TOKENS) for _ in range(4)] == [True] * 3 + [False]
        other = Rate("requests", "key", "ann", 3)  # a key's name is not a user's
        assert await admitted(rates, other)
        await rates.charge([REQUESTS, TOKENS], 99)
        assert await admitted(rates, TOKENS)
        await rates.charge([TOKENS], 500)  # more than the limit, and counted in full
        with pytest.raises(RateLimited, match="100 tokens a minute") as refusal:
            await rates.admit([TOKENS])
        assert int(dict(refusal.value.headers)["Retry-After"]) > 30
        assert refusal.value.limit == "user_tokens_per_minute"
        generous = Rate("tokens", "user", "ann", 1000)  # a raised limit: the same window
        (standing,) = await rates.admit([generous])
        assert standing.remaining in (401, 400)

    asyncio.run(scene())


def test_headers_tell_the_tightest() -> None:
    wide = Standing(Rate("requests", "key", "k", 100), 90, 0.0, 6.0)
    tight = Standing(Rate("requests", "user", "u", 10), 2, 0.0, 48.0)
    assert dict(headers_of([wide, tight])) == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "48.000s",
    }


def in_one_loop(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scene(), 60))


def test_two_servers_share_and_go_on_alone_without_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates_module, "AWAY_SECONDS", 0.3)
    with redis_server() as redis:

        async def scene() -> None:
            one, other = Rates(redis.url), Rates(redis.url)
            assert [await admitted(r, REQUESTS) for r in (one, other, one)] == [True] * 3
            assert not await admitted(other, REQUESTS)
            await one.charge([TOKENS], 150)
            assert not await admitted(other, TOKENS)

            redis.stop()
            assert await admitted(one, REQUESTS)  # by itself, from nothing
            assert not one.shared
            assert [await admitted(one, REQUESTS) for _ in range(3)] == [True, True, False]

            redis.start()
            async with asyncio.timeout(10):
                while not one.shared:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            assert await admitted(one, REQUESTS)
            assert one.shared
            for rates in (one, other):
                await rates.close()

        in_one_loop(scene)


@pytest.fixture
def registry(tmp_path: Path) -> Any:
    opened = open_registry(tmp_path)
    opened.accounts.create_user("ann")
    yield opened
    opened.close()


def test_a_month_survives_and_is_everybodys(registry: Registry) -> None:
    async def scene() -> None:
        one, other = Budgets(registry.allowances), Budgets(registry.allowances)
        assert await one.spent("ann") == 0
        one.charge("ann", 10, 5)
        assert await one.spent("ann") == 15
        one.write()
        one.charge("ann", 0, 1)
        assert await one.spent("ann") == 16
        assert await other.spent("ann") == 15
        other.charge("ann", 1, 0)
        for budgets in (one, other):
            budgets.write()
            budgets.write()  # what is written is not written again
        assert await Budgets(registry.allowances).spent("ann") == 17

    asyncio.run(scene())
    assert registry.allowances.spent("ann", "1999-01").tokens == 0
    assert 0 < seconds_left_of_the_month() <= 31 * 86400


def test_no_token_is_lost_between_charging_and_writing(registry: Registry) -> None:
    budgets = Budgets(registry.allowances)
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            budgets.write()

    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(20_000):
        budgets.charge("ann", 1, 0)
    done.set()
    writer.join()
    budgets.write()
    assert registry.allowances.spent("ann", this_month()).prompt_tokens == 20_000


def test_a_month_counts_on_while_the_database_is_away(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> Any:
        raise StoreError("The database is away.")

    async def scene() -> None:
        budgets = Budgets(registry.allowances)
        with monkeypatch.context() as broken:
            broken.setattr(registry.allowances, "add", away)
            broken.setattr(registry.allowances, "spent", away)
            budgets.charge("ann", 3, 4)
            budgets.write()
            assert await budgets.spent("ann") == 7
        budgets.write()
        assert registry.allowances.spent("ann", this_month()).tokens == 7

    asyncio.run(scene())


def test_exceptions_are_seen_and_die_with_their_user(registry: Registry) -> None:
    own = Allowance(requests_per_minute=7)
    with RegistryView(registry, poll_seconds=60) as view:
        assert view.allowance("ann") is None
        registry.allowances.set("ann", own)
        view.refresh()
        assert view.allowance("ann") == own
        assert own.or_else(Allowance(1, 2)) == Allowance(7, 2)
        registry.allowances.add(this_month(), {"ann": (1, 1), "x" * 500: (1, 1), "a\0b": (1, 1)})
        registry.accounts.delete_user("ann")
        registry.accounts.create_user("ann")
        view.refresh()
        assert view.allowance("ann") is None
    assert registry.allowances.of("ann") == Allowance()
    assert registry.allowances.spent("ann", this_month()).tokens == 0
    with pytest.raises(InvalidName, match="streams"):
        registry.allowances.set("ann", Allowance(streams=-1))
