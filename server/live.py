"""A started engine with all that belongs to its one life: the adapters it holds, the way to them.

Owns putting these together. When an engine dies, its pool and router die with it: nothing that they
believe about its memory holds for the next one.
"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.datastructures import State

from adapters.store import Store
from adapters.view import RegistryView
from server.admission import FairSlots
from server.canary import Canary
from server.engine.vllm import Engine
from server.pool import AdapterPool
from server.routing import Router
from server.settings import Settings


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
    settings: Settings, view: RegistryView, store: Store, canary: Canary, state: State
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
    pool = AdapterPool(engine, store.lease, slots, memory_bytes=settings.adapter_memory_bytes)
    return Live(engine, pool, Router(view, pool, canary, settings.base_name))
