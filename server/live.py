"""A started engine with all that belongs to its one life: the adapters it holds, the way to them.

Owns putting these together, and having the canary ask. When an engine dies, its pool and router die
with it: nothing that they believe about its memory holds for the next one.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog
from starlette.datastructures import State

from adapters.base import BaseModelInfo
from adapters.store import Store
from adapters.view import RegistryView
from server.admission import FairSlots, UserPlaces
from server.canary import Canary
from server.engine.vllm import Engine
from server.errors import EngineUnavailable
from server.metrics import Health
from server.pool import AdapterPool, Witness
from server.rates import Rates
from server.routing import Router
from server.settings import Settings
from server.supervisor import Supervisor

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Live:
    """What answers requests now."""

    engine: Engine
    pool: AdapterPool
    router: Router

    @property
    def alive(self) -> bool:
        return self.engine.alive

    def stop(self) -> None:
        self.engine.stop()

    def give_up(self) -> None:
        """Make room for another engine, which the supervisor starts."""
        self.engine.give_up()


async def start_live(
    settings: Settings,
    view: RegistryView,
    store: Store,
    canary: Canary,
    state: State,
    witness: Witness,
    base: BaseModelInfo,
) -> Live:
    """Start an engine, which takes tens of seconds. Raises whatever vLLM and the canary raise."""
    engine = await Engine.start(settings, state)
    try:
        await canary.greet(engine)
    except BaseException:
        engine.stop()
        raise
    slots = FairSlots[int](
        settings.max_loras,
        turn_seconds=settings.adapter_turn_seconds,
        max_wait=settings.adapter_wait_seconds,
    )
    room = settings.adapter_memory_bytes
    pool = AdapterPool(engine, store.lease, slots, memory_bytes=room, witness=witness)
    users = UserPlaces[str](settings.user_concurrency, max_wait=settings.adapter_wait_seconds)
    router = Router(view, pool, users, canary, settings.base_name, base.fingerprint)
    return Live(engine, pool, router)


async def follow_retirements(
    view: RegistryView, supervisor: Supervisor[Live], pause_seconds: float
) -> None:
    """For ever, take out of the engine what was retired, wherever that was done."""
    while True:
        await asyncio.sleep(pause_seconds)
        if live := supervisor.running:
            live.pool.retire_unless(view.knows)


async def listen_to_the_canary(
    canary: Canary, supervisor: Supervisor[Live], pause_seconds: float
) -> None:
    """For ever, ask the engine that runs; one that has gone wrong makes room for another."""
    while True:
        await asyncio.sleep(pause_seconds)
        live = supervisor.running
        if live is None:
            continue
        try:
            if not await canary.listen(live.engine, live.pool.loaded):
                live.give_up()
        except EngineUnavailable:
            continue  # it died meanwhile, which the supervisor mends
        except Exception as error:  # whatever it is, the next engine must be listened to
            log.error("canary_failed", exc_info=error)


def health_of(
    supervisor: Supervisor[Live], canary: Canary, view: RegistryView, rates: Rates
) -> Health:
    """What the metrics show of the engine and of what is known of the registry."""
    live = supervisor.running
    return Health(
        engine_up=live is not None,
        restarts=supervisor.restarts,
        canary_failures=canary.failures,
        quarantined=len(canary.quarantined),
        stale_seconds=view.stale_seconds,
        limits_shared=rates.shared,
        running=live.pool.slots.running if live else 0,
        waiting=live.pool.slots.waiting if live else 0,
        resident=live.pool.sizes if live else (),
    )
