"""Fair shares of few slots: everybody's turn comes, in order, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import defaultdict

import pytest

from server.admission import FairSlots, UserPlaces
from server.errors import AdapterBusy, TooManyAtOnce


def slots(count: int, turn: float = 0.05, wait: float = 10.0) -> FairSlots[str]:
    return FairSlots(count, turn_seconds=turn, max_wait=wait)


async def hold(fair: FairSlots[str], key: str, until: asyncio.Event, log: list[str]) -> None:
    async with fair.turn(key):
        log.append(key)
        await until.wait()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_no_more_than_the_slots_run_and_the_rest_come_in_order() -> None:
    async def scene() -> None:
        fair, done, log = slots(2), asyncio.Event(), list[str]()
        tasks = []
        for key in "aabcd":
            tasks.append(asyncio.create_task(hold(fair, key, done, log)))
            await settle()
        assert log == ["a", "a", "b"]
        assert (fair.running, fair.waiting) == (2, 2)
        done.set()
        await asyncio.gather(*tasks)
        assert log == ["a", "a", "b", "c", "d"]
        assert (fair.running, fair.waiting) == (0, 0)

    asyncio.run(scene())


def test_a_running_one_is_not_joined_for_ever_while_another_waits() -> None:
    async def scene() -> None:
        fair, first, log = slots(1, turn=0.02), asyncio.Event(), list[str]()
        running = asyncio.create_task(hold(fair, "a", first, log))
        await settle()
        waiting = asyncio.create_task(hold(fair, "b", first, log))
        await settle()
        early = asyncio.create_task(hold(fair, "a", first, log))
        await settle()
        assert log == ["a", "a"]  # the turn is young: it may join
        await asyncio.sleep(0.03)
        late = asyncio.create_task(hold(fair, "a", first, log))
        await settle()
        assert log == ["a", "a"]  # now it stands behind b
        first.set()
        await asyncio.gather(running, waiting, early, late)
        assert log == ["a", "a", "b", "a"]

    asyncio.run(scene())


def test_a_wait_is_bounded_and_says_so() -> None:
    async def scene() -> None:
        fair, done, log = slots(1, wait=0.05), asyncio.Event(), list[str]()
        running = asyncio.create_task(hold(fair, "a", done, log))
        await settle()
        with pytest.raises(AdapterBusy, match="try again"):
            await hold(fair, "b", done, log)
        assert fair.waiting == 0
        # Nobody waits any more, so the one that runs may be joined again.
        joined = asyncio.create_task(hold(fair, "a", done, log))
        await settle()
        assert log == ["a", "a"]
        done.set()
        await asyncio.gather(running, joined)

    asyncio.run(scene())


def test_whoever_leaves_the_queue_holds_up_nobody() -> None:
    async def scene() -> None:
        fair, done, log = slots(1, turn=0), asyncio.Event(), list[str]()
        running = asyncio.create_task(hold(fair, "a", done, log))
        await settle()
        gone = asyncio.create_task(hold(fair, "b", done, log))
        await settle()
        behind = asyncio.create_task(hold(fair, "a", done, log))
        await settle()
        assert log == ["a"]
        gone.cancel()
        await settle()
        assert log == ["a", "a"]  # it stood behind b only
        done.set()
        await asyncio.gather(running, behind)

    asyncio.run(scene())


@pytest.mark.parametrize("rest", [0, 1])
def test_leaving_at_the_moment_of_being_served_loses_no_slot(rest: int) -> None:
    async def scene() -> None:
        fair, done, log = slots(1), asyncio.Event(), list[str]()
        running = asyncio.create_task(hold(fair, "a", done, log))
        await settle()
        gone = [asyncio.create_task(hold(fair, "b", done, log)) for _ in range(1 + rest)]
        await settle()
        done.set()
        await running  # its slot has just been given to b, who has not run yet
        gone[0].cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        assert (fair.running, fair.waiting) == (0, 0)
        async with asyncio.timeout(1):
            await hold(fair, "c", done, log)

    asyncio.run(scene())


def test_three_on_two_slots_under_steady_load() -> None:
    """vLLM alone let the third wait for as long as the load lasted."""

    async def scene() -> dict[str, list[float]]:
        fair = slots(2, turn=0.05)
        waits: dict[str, list[float]] = defaultdict(list)
        end = time.monotonic() + 2

        async def caller(key: str) -> None:
            while time.monotonic() < end:
                asked = time.monotonic()
                async with fair.turn(key):
                    waits[key].append(time.monotonic() - asked)
                    await asyncio.sleep(0.02)

        await asyncio.gather(*(caller(key) for key in "abc" for _ in range(4)))
        return waits

    waits = asyncio.run(scene())
    served = {key: len(found) for key, found in waits.items()}
    assert min(served.values()) > 0.7 * max(served.values())
    # A turn and the end of one: nobody waits longer than the other two turns.
    assert max(max(found) for found in waits.values()) < 0.5
    assert statistics.median(served.values()) > 40


def test_a_user_has_so_many_places_and_a_line_as_long() -> None:
    async def scene() -> None:
        users: UserPlaces[str] = UserPlaces(2, max_wait=10)
        done, log = asyncio.Event(), list[str]()

        async def ask(user: str, name: str) -> None:
            async with users.place(user):
                log.append(name)
                await done.wait()

        asking = [asyncio.create_task(ask("ann", f"ann-{n}")) for n in range(4)]
        await settle()
        assert log == ["ann-0", "ann-1"]
        with pytest.raises(TooManyAtOnce, match="4 requests of yours"):
            await ask("ann", "ann-4")
        other = asyncio.create_task(ask("bob", "bob-0"))
        await settle()
        assert log[2:] == ["bob-0"]
        asking[2].cancel()  # it leaves the line
        done.set()
        await asyncio.gather(*asking, other, return_exceptions=True)
        assert log[3:] == ["ann-3"]

    asyncio.run(scene())


def test_a_wait_for_ones_own_requests_is_bounded() -> None:
    async def scene() -> None:
        users: UserPlaces[str] = UserPlaces(1, max_wait=0.02)
        async with users.place("ann"):
            with pytest.raises(TooManyAtOnce, match="have been running"):
                async with users.place("ann"):
                    pass
        async with users.place("ann"):
            pass

    asyncio.run(scene())
