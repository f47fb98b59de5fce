"""`GET /admin/engine`: what the engine holds and who waits. Admin keys only."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from server.api.bodies import EngineBody
from server.dependencies import AdminDep, CanaryDep, LiveDep, SettingsDep, SupervisorDep

router = APIRouter(prefix="/admin", tags=["admin"])


@router.get("/engine", response_model=EngineBody)
async def engine_state(
    admin: AdminDep,
    live: LiveDep,
    settings: SettingsDep,
    supervisor: SupervisorDep,
    canary: CanaryDep,
) -> dict[str, Any]:
    """Residency, slots and the queue in front of them."""
    inside = await live.engine.resident_adapters()
    return {
        "model": live.engine.base_name,
        "restarts": supervisor.restarts,
        "slots": {
            "total": settings.max_loras,
            "running": live.pool.slots.running,
            "waiting": live.pool.slots.waiting,
        },
        "memory": {"bytes": live.pool.bytes, "limit": settings.adapter_memory_bytes},
        "resident": sorted(version.ref for version in live.pool.loaded),
        "quarantined": canary.quarantined,
        "in_host_memory": len(inside["host"]),
        "in_slots": len(inside["slots"]),
    }
