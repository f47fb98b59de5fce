"""Which adapter versions the engine holds: loads one at its first use, forgets it when retired.

Owns the set of loaded versions and one lock per version that is being loaded. It neither decides
who may use a version nor knows vLLM. Slots and host memory are evicted by the engine, which reads
the immutable files again when it needs them.
Invariant: however many requests want a version at once, it is loaded once.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Protocol

from adapters.registry import AdapterVersion


class AdapterHost(Protocol):
    """What the pool needs of an engine."""

    async def add_adapter(self, name: str, engine_id: int, folder: Path) -> None: ...
    async def remove_adapter(self, name: str, engine_id: int) -> None: ...


class AdapterPool:
    def __init__(self, host: AdapterHost) -> None:
        self._host = host
        self._loaded: dict[int, str] = {}  # engine id → name
        self._loading: dict[int, asyncio.Lock] = {}

    async def admit(self, version: AdapterVersion, folder: Path) -> str:
        """Make sure that the engine can answer with `version`; returns its name there."""
        if version.engine_id not in self._loaded:
            lock = self._loading.setdefault(version.engine_id, asyncio.Lock())
            try:
                async with lock:
                    if version.engine_id not in self._loaded:
                        await self._host.add_adapter(version.ref, version.engine_id, folder)
                        self._loaded[version.engine_id] = version.ref
            finally:
                self._loading.pop(version.engine_id, None)
        return version.ref

    async def forget(self, adapter_id: str) -> None:
        """Take every version of a retired adapter out of the engine."""
        for engine_id, name in list(self._loaded.items()):
            if name.rpartition("@")[0] == adapter_id:
                del self._loaded[engine_id]
                await self._host.remove_adapter(name, engine_id)

    @property
    def loaded(self) -> list[str]:
        return sorted(self._loaded.values())
