"""`/admin/adapters…`: upload, list, activate, roll back, retire, grant. Admin keys only.

An upload is three named file parts, written to a scratch folder of the store and handed to the
registry, which checks and rewrites it; the scratch folder is gone when the answer is sent, or else
when the next server is started.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Header, UploadFile
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from adapters.artifact import ADAPTER_FILES
from adapters.fetching import sent_version
from adapters.files import disk_errors
from adapters.registry import AdapterVersion
from adapters.shapes import version_body
from server.api.archives import ARCHIVE, sent
from server.api.bodies import AdapterBody, AdapterDetails, Page, VersionBody
from server.dependencies import (
    AdminDep,
    BaseDep,
    OptionalLive,
    PacingDep,
    RegistryDep,
    SettingsDep,
)
from server.errors import BadRequest
from server.pages import After, Limit, page, plus_one
from server.uploads import LargeBody, keep

router = APIRouter(prefix="/admin/adapters", tags=["admin"], route_class=LargeBody)


class Activation(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: int = Field(ge=1)
    expected_version: int | None = Field(None, ge=0, description="refuse unless this one is active")
    force: bool = Field(False, description="also what the gate refuses; the audit log says so")


class Rollback(BaseModel):
    model_config = ConfigDict(extra="forbid")

    expected_version: int | None = Field(None, ge=0, description="refuse unless this one is active")


class Grants(BaseModel):
    model_config = ConfigDict(extra="forbid")

    everyone: bool = False
    users: list[str] = []
    groups: list[str] = []


def _save(parts: list[UploadFile], folder: Path) -> None:
    for part in parts:
        if part.filename not in ADAPTER_FILES:
            raise BadRequest(
                f"file {part.filename!r} is not accepted: send {', '.join(ADAPTER_FILES)}",
                param=part.filename,
            )
        target = folder / part.filename
        if target.exists():
            raise BadRequest(f"file {part.filename!r} was sent twice", param=part.filename)
        with disk_errors(target):
            keep(part, target)


@router.post("/{adapter_id:path}/versions", status_code=201, response_model=VersionBody)
async def upload_version(
    adapter_id: str,
    admin: AdminDep,
    registry: RegistryDep,
    base: BaseDep,
    settings: SettingsDep,
    pacing: PacingDep,
    adapter_config: Annotated[UploadFile, File(description="adapter_config.json")],
    adapter_model: Annotated[UploadFile, File(description="adapter_model.safetensors")],
    manifest: Annotated[UploadFile | None, File(description="manifest.json")] = None,
    activate: Annotated[bool, Form(description="switch to it at once")] = False,
    force: Annotated[bool, Form(description="also what the gate refuses; audited")] = False,
    owner: Annotated[str | None, Form(description="the user it belongs to")] = None,
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
) -> dict[str, Any]:
    """Upload a new version; answers with it, checked, rewritten to the served form and stored."""
    limits = settings.upload_limits

    def publish() -> AdapterVersion:
        with pacing.beside_the_steps(), registry.store.scratch() as folder:
            _save([part for part in (adapter_config, adapter_model, manifest) if part], folder)
            return registry.publish(
                adapter_id,
                folder,
                base=base,
                limits=limits,
                owner=owner,
                actor=admin.key_id,
                activate=activate,
                force=force,
                idempotency_key=idempotency_key,
                reserved=frozenset({settings.base_name}),
            )

    return version_body(await run_in_threadpool(publish))


@router.get("", response_model=Page[AdapterBody])
async def list_adapters(
    admin: AdminDep, registry: RegistryDep, after: After = None, limit: Limit = None
) -> dict[str, Any]:
    """Every adapter that is not retired, by name; with `limit` a page of them."""
    return page(await run_in_threadpool(registry.list_adapters, after, plus_one(limit)), limit)


@router.post("/{adapter_id:path}/activate", response_model=VersionBody)
async def activate_version(
    adapter_id: str, wish: Activation, admin: AdminDep, registry: RegistryDep
) -> dict[str, Any]:
    """Move the pointer; 409 when not `expected_version` is active, or where the gate refuses."""

    def activate() -> AdapterVersion:
        return registry.activate(
            adapter_id,
            wish.version,
            expected_version=wish.expected_version,
            force=wish.force,
            actor=admin.key_id,
        )

    return version_body(await run_in_threadpool(activate))


@router.post("/{adapter_id:path}/rollback", response_model=VersionBody)
async def roll_back(
    adapter_id: str, admin: AdminDep, registry: RegistryDep, wish: Rollback | None = None
) -> dict[str, Any]:
    """Back to the version that was active before; again, to the one before that."""

    def roll_back() -> AdapterVersion:
        expected = wish.expected_version if wish else None
        return registry.rollback(adapter_id, expected, actor=admin.key_id)

    return version_body(await run_in_threadpool(roll_back))


@router.put("/{adapter_id:path}/grants", response_model=Grants)
async def set_grants(
    adapter_id: str, grants: Grants, admin: AdminDep, registry: RegistryDep
) -> dict[str, Any]:
    """Who may use it, besides its owner and admins."""

    def grant() -> None:
        registry.set_grants(
            adapter_id,
            everyone=grants.everyone,
            users=grants.users,
            groups=grants.groups,
            actor=admin.key_id,
        )

    await run_in_threadpool(grant)
    return grants.model_dump()


@router.get(
    "/{adapter_id:path}/versions/{version}/files",
    response_class=StreamingResponse,
    responses={200: ARCHIVE},
)
async def get_files(
    adapter_id: str, version: int, admin: AdminDep, registry: RegistryDep
) -> StreamingResponse:
    """The two files of a version in the form that is served, as a tar."""
    return await sent(sent_version(registry, adapter_id, version))


@router.get("/{adapter_id:path}", response_model=AdapterDetails)
async def get_adapter(adapter_id: str, admin: AdminDep, registry: RegistryDep) -> dict[str, Any]:
    return await run_in_threadpool(registry.describe, adapter_id)


@router.delete("/{adapter_id:path}", status_code=204)
async def retire(
    adapter_id: str, admin: AdminDep, registry: RegistryDep, live: OptionalLive
) -> None:
    """Retire for good: its name and versions stay taken, nobody can ask for it again."""
    await run_in_threadpool(registry.retire, adapter_id, actor=admin.key_id)
    if live is not None:
        live.pool.retire(adapter_id)
