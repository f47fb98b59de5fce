"""`/admin/users…`: users, their keys, their assignment. Admin keys only; a key is shown once."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.concurrency import run_in_threadpool

from adapters.accounts import MAX_DAYS, Role
from adapters.shapes import user_body
from server.api.bodies import AssignmentBody, KeyBody, Page, UserBody, UserName
from server.dependencies import AdminDep, RegistryDep
from server.pages import After, Limit, page, plus_one

router = APIRouter(prefix="/admin", tags=["admin"])


class NewUser(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: str = Field(description="the user's name, as in `alice`")


class NewKey(BaseModel):
    model_config = ConfigDict(extra="forbid")

    role: Role = Role.USER
    days: float | None = Field(
        None, gt=0, le=MAX_DAYS, description="how long it is valid; null: until it is revoked"
    )


class Assignment(BaseModel):
    model_config = ConfigDict(extra="forbid")

    adapter: str | None = Field(
        None, description="the adapter this user talks to; null for the base"
    )
    experiment: str | None = Field(
        None, description="or the experiment he takes part in, over what he is assigned"
    )

    @model_validator(mode="after")
    def _names_one(self) -> Assignment:
        if len(self.model_fields_set) != 1:
            raise ValueError("give either adapter or experiment")
        return self


@router.post("/users", status_code=201, response_model=UserName)
async def create_user(user: NewUser, admin: AdminDep, registry: RegistryDep) -> dict[str, Any]:
    await run_in_threadpool(registry.accounts.create_user, user.id, actor=admin.key_id)
    return {"id": user.id}


@router.get("/users", response_model=Page[UserBody])
async def list_users(
    admin: AdminDep, registry: RegistryDep, after: After = None, limit: Limit = None
) -> dict[str, Any]:
    """Every user, by name; with `limit` a page of them."""
    users = await run_in_threadpool(registry.accounts.list_users, after, plus_one(limit))
    return page([user_body(user) for user in users], limit)


@router.delete("/users/{user_id:path}", status_code=204)
async def delete_user(user_id: str, admin: AdminDep, registry: RegistryDep) -> None:
    """Delete the user with his keys, grants, memberships and quota."""
    await run_in_threadpool(registry.accounts.delete_user, user_id, actor=admin.key_id)


@router.post("/users/{user_id:path}/keys", status_code=201, response_model=KeyBody)
async def create_key(
    user_id: str, key: NewKey, admin: AdminDep, registry: RegistryDep
) -> dict[str, Any]:
    """A new key for this user; the secret is in this answer and nowhere else."""

    def create() -> dict[str, Any]:
        return registry.accounts.create_key_for(key.role, user_id, key.days, actor=admin.key_id)

    return await run_in_threadpool(create)


@router.delete("/keys/{key_id}", status_code=204)
async def revoke_key(key_id: str, admin: AdminDep, registry: RegistryDep) -> None:
    """The key is refused from now on."""
    await run_in_threadpool(registry.accounts.revoke_key, key_id, actor=admin.key_id)


@router.put(
    "/users/{user_id:path}/assignment",
    response_model=AssignmentBody,
    response_model_exclude_unset=True,
)
async def assign(
    user_id: str, assignment: Assignment, admin: AdminDep, registry: RegistryDep
) -> dict[str, Any]:
    """What this user gets when a request names nothing."""

    def change() -> None:
        if assignment.experiment is None:
            registry.assign(user_id, assignment.adapter, actor=admin.key_id)
        else:
            registry.experiments.enrol(assignment.experiment, users=[user_id], actor=admin.key_id)

    await run_in_threadpool(change)
    return {"user": user_id, **assignment.model_dump(exclude_unset=True)}
