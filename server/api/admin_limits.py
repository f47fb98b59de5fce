"""`/admin/users/{id}/limits`: what one user may use, and what he has used. Admin keys only."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from adapters.allowances import LARGEST, Allowance
from adapters.shapes import limits_body
from server.api.bodies import LimitsBody
from server.budgets import this_month
from server.dependencies import AdminDep, RegistryDep

router = APIRouter(prefix="/admin/users", tags=["admin"])


class Bounds(BaseModel):
    """What is null is as for everybody."""

    model_config = ConfigDict(extra="forbid")

    requests_per_minute: int | None = Field(None, ge=0, le=LARGEST)
    tokens_per_minute: int | None = Field(None, ge=0, le=LARGEST)
    streams: int | None = Field(None, ge=0, le=LARGEST, description="requests at the same time")
    tokens_per_month: int | None = Field(None, ge=0, le=LARGEST)


@router.get("/{user_id:path}/limits", response_model=LimitsBody)
async def get_limits(user_id: str, admin: AdminDep, registry: RegistryDep) -> dict[str, Any]:
    """The user's own limits, and the tokens that he has used this month."""
    allowance = await run_in_threadpool(registry.allowances.of, user_id)
    spent = await run_in_threadpool(registry.allowances.spent, user_id, this_month())
    return limits_body(user_id, allowance, spent)


@router.put("/{user_id:path}/limits", response_model=LimitsBody)
async def set_limits(
    user_id: str, bounds: Bounds, admin: AdminDep, registry: RegistryDep
) -> dict[str, Any]:
    """Replace the user's own limits; in force at once here, and within a poll elsewhere."""
    allowance = Allowance(**bounds.model_dump())

    def change() -> None:
        registry.allowances.set(user_id, allowance, actor=admin.key_id)

    await run_in_threadpool(change)
    return await get_limits(user_id, admin, registry)
