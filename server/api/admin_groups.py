"""`/admin/groups…`, `/admin/quotas…`, `/admin/audit`: who is together, how much, who did what.

Admin keys only.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from adapters.quotas import LARGEST_BYTES, LARGEST_VERSIONS, Quota
from adapters.shapes import entry_body, group_body, quota_body
from server.api.bodies import AuditBody, GroupBody, Page, QuotaAndUsage, QuotaBody
from server.dependencies import AdminDep, RegistryDep
from server.pages import page

router = APIRouter(prefix="/admin", tags=["admin"])


class NewGroup(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: str = Field(description="the group's name, as in `staff`")


class Members(BaseModel):
    model_config = ConfigDict(extra="forbid")

    users: list[str]


class Bounds(BaseModel):
    model_config = ConfigDict(extra="forbid")

    max_versions: int | None = Field(
        None, ge=0, le=LARGEST_VERSIONS, description="null: any number"
    )
    max_bytes: int | None = Field(None, ge=0, le=LARGEST_BYTES, description="null: any number")


@router.post("/groups", status_code=201, response_model=GroupBody)
async def create_group(group: NewGroup, admin: AdminDep, registry: RegistryDep) -> dict[str, Any]:
    made = await run_in_threadpool(registry.groups.create, group.id, actor=admin.key_id)
    return group_body(made)


@router.get("/groups", response_model=Page[GroupBody])
async def list_groups(admin: AdminDep, registry: RegistryDep) -> dict[str, Any]:
    return {"data": [group_body(g) for g in await run_in_threadpool(registry.groups.list)]}


@router.get("/groups/{group_id}", response_model=GroupBody)
async def get_group(group_id: str, admin: AdminDep, registry: RegistryDep) -> dict[str, Any]:
    return group_body(await run_in_threadpool(registry.groups.get, group_id))


@router.delete("/groups/{group_id}", status_code=204)
async def delete_group(group_id: str, admin: AdminDep, registry: RegistryDep) -> None:
    """Delete the group and what was granted to it; its members stay users."""
    await run_in_threadpool(registry.groups.delete, group_id, actor=admin.key_id)


@router.post("/groups/{group_id}/members", response_model=GroupBody)
async def add_members(
    group_id: str, members: Members, admin: AdminDep, registry: RegistryDep
) -> dict[str, Any]:
    """Put users into the group, all of them or none; answers with the group."""
    await run_in_threadpool(registry.groups.add, group_id, members.users, actor=admin.key_id)
    return group_body(await run_in_threadpool(registry.groups.get, group_id))


@router.delete("/groups/{group_id}/members/{user_id}", status_code=204)
async def remove_member(
    group_id: str, user_id: str, admin: AdminDep, registry: RegistryDep
) -> None:
    await run_in_threadpool(registry.groups.remove, group_id, [user_id], actor=admin.key_id)


@router.get("/quotas", response_model=Page[QuotaBody])
async def list_quotas(admin: AdminDep, registry: RegistryDep) -> dict[str, Any]:
    """Every bound that was set; the owner "*" is everybody without one of his own."""
    return {"data": [quota_body(q) for q in await run_in_threadpool(registry.quotas.list)]}


@router.put("/quotas/{owner}", response_model=QuotaBody)
async def set_quota(
    owner: str, bounds: Bounds, admin: AdminDep, registry: RegistryDep
) -> dict[str, Any]:
    """Bound what a user, or "*", may keep; what is there already stays."""

    def bound() -> Quota:
        return registry.quotas.set(owner, **bounds.model_dump(), actor=admin.key_id)

    return quota_body(await run_in_threadpool(bound))


@router.delete("/quotas/{owner}", status_code=204)
async def delete_quota(owner: str, admin: AdminDep, registry: RegistryDep) -> None:
    await run_in_threadpool(registry.quotas.delete, owner, actor=admin.key_id)


@router.get("/users/{user_id}/quota", response_model=QuotaAndUsage)
async def get_quota(user_id: str, admin: AdminDep, registry: RegistryDep) -> dict[str, Any]:
    """The bounds that hold for this user, and what he has of it."""
    quota, usage = await run_in_threadpool(registry.quotas.of, user_id)
    return {**quota_body(quota), "usage": dataclasses.asdict(usage)}


@router.get("/audit", response_model=Page[AuditBody])
async def read_audit(
    admin: AdminDep,
    registry: RegistryDep,
    subject: Annotated[str | None, Query(description="only this adapter, user, key …")] = None,
    after: Annotated[
        int | None, Query(ge=0, le=LARGEST_BYTES, description="the last id of the page before")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> dict[str, Any]:
    """The changes, newest first, a page at a time."""
    entries = await run_in_threadpool(registry.audit, subject, after, limit + 1)
    return page([entry_body(entry) for entry in entries], limit)
