"""`/admin/feedback`, `/admin/users/{id}/feedback`: pairs for training, consent. Admin keys only."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool

from adapters.pairs import USERS_AT_ONCE, note_export, users_with_pairs
from server.api.bodies import ConsentBody, Page, UserPairs
from server.api.feedback import Consent
from server.dependencies import AdminDep, RegistryDep
from server.pages import After, page, plus_one

router = APIRouter(prefix="/admin", tags=["admin"])

Name = Annotated[str | None, Query(max_length=128)]
Users = Annotated[int, Query(ge=1, le=1000, description="how many users; each with all his pairs")]


@router.put("/users/{user_id:path}/feedback", response_model=ConsentBody)
async def set_consent(
    user_id: str, consent: Consent, admin: AdminDep, registry: RegistryDep
) -> dict[str, Any]:
    """Note that a user agreed, or withdrew: then every text of his is forgotten."""

    def change() -> None:
        registry.feedback.set_consent(user_id, consent.keep, actor=admin.key_id)

    await run_in_threadpool(change)
    return {"user": user_id, "keep": consent.keep}


@router.get("/feedback", response_model=Page[UserPairs])
async def list_pairs(
    admin: AdminDep,
    registry: RegistryDep,
    user: Name = None,
    adapter: Name = None,
    after: After = None,
    limit: Users = USERS_AT_ONCE,
) -> dict[str, Any]:
    """Preference pairs from what users said, user by user, as `bapo train` reads them.

    `adapter` leaves what was said of its answers (`base`: of the base's). The first page is a line
    of the audit log.
    """

    def read() -> dict[str, Any]:
        if after is None:
            note_export(registry.engine, user, adapter, admin.key_id)
        which = {"user_id": user, "adapter": adapter, "after": after}
        found = users_with_pairs(registry.engine, **which, limit=plus_one(limit))
        return page([{"user": name, "pairs": pairs} for name, pairs in found], limit)

    return await run_in_threadpool(read)
