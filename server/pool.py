"""Which adapter versions the engine holds, from the store's files to host memory to a slot.

Owns residency: a version is read once however many want it, stays until the room is needed for
another, and leaves when it is retired and its last request has ended. Least recently used goes
first; room is counted in bytes, since ranks differ. Whose turn it is, is `admission.FairSlots`'.
Neither decides who may use a version nor knows vLLM.
Invariant: what a request uses is neither evicted nor removed before the request has ended.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from adapters.registry import AdapterVersion
from server.admission import FairSlots
from server.meter import Phase, current

log = structlog.get_logger(__name__)

Lease = Callable[[str], AbstractContextManager[Path]]
"""From a digest to its files, verified and held for as long as the context lasts. Blocks."""


class AdapterHost(Protocol):
    """What the pool needs of an engine; each call raises what the engine says."""

    @property
    def bytes_a_byte(self) -> float:
        """Host memory for each byte of an adapter's file: 2 where bf16 becomes fp32."""

    async def stage_adapter(self, name: str, engine_id: int, folder: Path) -> None:
        """Read it into host memory, beside the engine's steps."""

    async def add_adapter(self, name: str, engine_id: int, folder: Path) -> None:
        """Give it a slot, and make it known by its name."""

    async def remove_adapter(self, name: str, engine_id: int) -> None:
        """Free slot and memory, whatever of it is there."""


class Witness(Protocol):
    """Who is told what happens to adapters, by name."""

    def loaded(self, adapter_id: str, seconds: float) -> None: ...

    def evicted(self, adapter_id: str) -> None: ...


@dataclass
class _Resident:
    """A version on its way into the engine, or there."""

    version: AdapterVersion
    bytes: int
    users: int = 0
    """Requests that use it or wait for it."""
    folder: Path | None = None
    """Where it was read from."""
    loading_seconds: float = 0.0
    """Reading and getting a slot, without the wait for a turn between the two."""
    staging: asyncio.Task[None] | None = None
    adding: asyncio.Task[None] | None = None
    is_known: bool = True
    """False once it is retired, evicted or failed: the next request begins anew."""


class AdapterPool:
    """One for each engine; used from one event loop only."""

    def __init__(
        self,
        host: AdapterHost,
        lease: Lease,
        slots: FairSlots[int],
        *,
        memory_bytes: int,
        witness: Witness | None = None,
    ) -> None:
        self.slots = slots
        self._host = host
        self._lease = lease
        self._memory_bytes = memory_bytes
        self._witness = witness
        # By engine id, least recently used first.
        self._residents: OrderedDict[int, _Resident] = OrderedDict()
        self._leaving: dict[int, asyncio.Task[None]] = {}
        self.bytes = 0
        """Host memory of what is in the engine or on its way there."""

    @asynccontextmanager
    async def using(self, version: AdapterVersion) -> AsyncIterator[str]:
        """Inside, the engine can answer with `version`; gives its name there.

        Raises AdapterBusy after too long a wait for a turn, and what loading raises.
        """
        meter = current()
        meter.enter(Phase.ADMIT)
        resident = self._resident(version)
        meter.cold = not _succeeded(resident.adding)
        resident.users += 1
        try:
            if self._fits(resident.bytes):
                self._stage(resident)  # while others have their turn
            async with self.slots.turn(version.engine_id):
                meter.enter(Phase.LOAD)
                # Shielded: a client that leaves must not take it from the others who want it.
                await asyncio.shield(self._stage(resident))
                await asyncio.shield(self._add(resident))
                yield version.ref
        finally:
            resident.users -= 1
            if not resident.users and resident.staging is None:
                self._unlist(resident)  # it gave up before its turn
            elif not resident.users and not resident.is_known:
                self._remove(resident)
            self._make_room(0)  # what was in use at once may have been more than there is room for

    def retire(self, adapter_id: str) -> None:
        """Take every version of an adapter out of the engine, each when its last request ends."""
        for resident in list(self._residents.values()):
            if resident.version.adapter_id == adapter_id:
                self._unlist(resident)
                if not resident.users:
                    self._remove(resident)

    def retire_unless(self, living: Callable[[str], bool]) -> None:
        """Retire every adapter that is not `living`."""
        for adapter_id in {r.version.adapter_id for r in self._residents.values()}:
            if not living(adapter_id):
                self.retire(adapter_id)

    @property
    def loaded(self) -> list[AdapterVersion]:
        """The versions that the engine holds, least recently used first."""
        return [version for version, _ in self.sizes]

    @property
    def sizes(self) -> list[tuple[AdapterVersion, int]]:
        """The same, each with the host memory it takes, bytes."""
        return [(r.version, r.bytes) for r in self._residents.values() if _succeeded(r.adding)]

    def _resident(self, version: AdapterVersion) -> _Resident:
        resident = self._residents.get(version.engine_id)
        if resident is None:
            size = int(version.bytes * self._host.bytes_a_byte)
            resident = self._residents[version.engine_id] = _Resident(version, size)
        self._residents.move_to_end(version.engine_id)
        return resident

    def _stage(self, resident: _Resident) -> asyncio.Task[None]:
        if resident.staging is None:
            self._make_room(resident.bytes)
            self.bytes += resident.bytes
            resident.staging = self._begin(resident, self._read(resident))
        return resident.staging

    def _add(self, resident: _Resident) -> asyncio.Task[None]:
        if resident.adding is None:
            resident.adding = self._begin(resident, self._give_slot(resident))
        return resident.adding

    def _begin(self, resident: _Resident, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)

        def ended(task: asyncio.Task[None]) -> None:
            # Whoever waits hears why it failed, and the next one to ask tries again.
            if (task.cancelled() or task.exception()) and resident.is_known:
                self._unlist(resident)
                if not resident.users:
                    self._remove(resident)

        task.add_done_callback(ended)
        return task

    async def _read(self, resident: _Resident) -> None:
        version = resident.version
        if before := self._leaving.get(version.engine_id):
            await asyncio.wait([before])  # or its removal would take the new one away
        began = time.monotonic()
        with await asyncio.to_thread(self._lease, version.digest) as folder:
            resident.folder = folder
            await self._host.stage_adapter(version.ref, version.engine_id, folder)
        resident.loading_seconds += time.monotonic() - began

    async def _give_slot(self, resident: _Resident) -> None:
        version = resident.version
        if resident.folder is None:
            raise RuntimeError("a slot comes after reading")
        began = time.monotonic()
        await self._host.add_adapter(version.ref, version.engine_id, resident.folder)
        resident.loading_seconds += time.monotonic() - began
        log.info("adapter_loaded", adapter=version.ref, bytes=resident.bytes)
        if self._witness:
            self._witness.loaded(version.adapter_id, resident.loading_seconds)

    def _fits(self, size: int) -> bool:
        """Whether so much more has room once all is evicted that nobody uses or waits for."""
        missing = self.bytes + size - self._memory_bytes
        for resident in self._residents.values():
            if missing <= 0:
                break
            if not resident.users and resident.staging is not None:
                missing -= resident.bytes
        return missing <= 0

    def _make_room(self, size: int) -> None:
        """Evict what nobody uses, the oldest first, until so much more fits.

        What is in use stays, so the budget can be exceeded by the adapters that have a turn.
        """
        if self.bytes + size <= self._memory_bytes:
            return
        for resident in list(self._residents.values()):
            if self.bytes + size <= self._memory_bytes:
                return
            if not resident.users and resident.staging is not None:
                self._unlist(resident)
                self._remove(resident)
                if self._witness:
                    self._witness.evicted(resident.version.adapter_id)

    def _unlist(self, resident: _Resident) -> None:
        resident.is_known = False
        if self._residents.get(resident.version.engine_id) is resident:
            del self._residents[resident.version.engine_id]

    def _remove(self, resident: _Resident) -> None:
        """Free what a version without users takes in the engine."""
        if resident.staging is None:
            return
        self.bytes -= resident.bytes
        engine_id = resident.version.engine_id
        leaving = asyncio.create_task(self._leave(resident))
        self._leaving[engine_id] = leaving

        def ended(task: asyncio.Task[None]) -> None:
            if self._leaving.get(engine_id) is task:
                del self._leaving[engine_id]

        leaving.add_done_callback(ended)

    async def _leave(self, resident: _Resident) -> None:
        tasks = [task for task in (resident.staging, resident.adding) if task is not None]
        await asyncio.wait(tasks)
        try:
            await self._host.remove_adapter(resident.version.ref, resident.version.engine_id)
        except Exception as error:
            log.warning("adapter_not_removed", adapter=resident.version.ref, exc_info=error)


def _succeeded(task: asyncio.Task[None] | None) -> bool:
    return task is not None and task.done() and not task.cancelled() and task.exception() is None
