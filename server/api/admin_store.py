"""`/admin/store/…`: stored bytes, hashed again or collected. Admin keys only."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from adapters.collection import Collected, collect, damaged
from server.api.bodies import CollectedBody, VerifiedBody
from server.dependencies import AdminDep, PacingDep, RegistryDep

router = APIRouter(prefix="/admin/store", tags=["admin"])


class Collection(BaseModel):
    model_config = ConfigDict(extra="forbid")

    hours: float = Field(24, ge=0, le=1e6, description="spare what is younger")
    dry_run: bool = Field(False, description="remove nothing, say what would be")


@router.post("/collect", response_model=CollectedBody)
async def collect_garbage(
    wish: Collection, admin: AdminDep, registry: RegistryDep
) -> dict[str, Any]:
    """Remove stored bytes that no living adapter's version names."""

    def work() -> Collected:
        return collect(registry, older_than=timedelta(hours=wish.hours), dry_run=wish.dry_run)

    return (await run_in_threadpool(work)).as_json()


@router.post("/verify", response_model=VerifiedBody)
async def verify(admin: AdminDep, registry: RegistryDep, pacing: PacingDep) -> dict[str, Any]:
    """Hash every stored adapter again; the same upload mends what is damaged."""

    def work() -> dict[str, Any]:
        with pacing.beside_the_steps():
            digests = registry.digests()
            return {"stored": len(digests), "damaged": damaged(registry, digests)}

    return await run_in_threadpool(work)
