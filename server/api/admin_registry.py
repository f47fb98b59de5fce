"""`/admin/registry`: everything there is, out as one archive and back into an empty registry.

Admin keys only. Neither way is more than a piece of it in memory. The archive is the folder that
`bapo adapters export` writes, as a tar.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import contextmanager_in_threadpool
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from adapters.carriage import importing, sent_registry
from adapters.validation import validate
from server.api.archives import ARCHIVE, sent
from server.api.bodies import TransferBody
from server.dependencies import AdminDep, BaseDep, RegistryDep, SettingsDep

router = APIRouter(prefix="/admin/registry", tags=["admin"])


@router.get("", response_class=StreamingResponse, responses={200: ARCHIVE})
async def export_registry(admin: AdminDep, registry: RegistryDep) -> StreamingResponse:
    """The whole registry: rows, keys' hashes and adapters' bytes."""
    return await sent(sent_registry(registry))


@router.post(
    "",
    status_code=201,
    response_model=TransferBody,
    openapi_extra={"requestBody": {"required": True, **ARCHIVE}},
)
async def import_registry(
    request: Request, admin: AdminDep, registry: RegistryDep, base: BaseDep, settings: SettingsDep
) -> dict[str, Any]:
    """Fill the registry, which must be empty but for admin keys, from such an archive.

    Every adapter is checked as an upload is. Cut short, it changes nothing.
    """
    limits = settings.upload_limits

    def check(folder: Path) -> None:
        validate(folder, base, limits)

    filling = importing(registry, check, admin.key_id)
    async with contextmanager_in_threadpool(filling) as under_way:
        async for piece in request.stream():
            await run_in_threadpool(under_way.feed, piece)
        return asdict(await run_in_threadpool(under_way.commit))
