"""`GET /v1/models`: what this caller may use, the base first; no paths of the server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool

from adapters.accounts import Caller, Role
from adapters.errors import AdapterNotFound
from adapters.registry import AdapterVersion, Registry
from server.dependencies import CallerDep, RegistryDep, SettingsDep

router = APIRouter(tags=["models"])


def _base_card(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "bapo-server", "parent": None}


def _adapter_card(version: AdapterVersion, base_name: str) -> dict[str, Any]:
    return {
        "id": version.adapter_id,
        "object": "model",
        "created": int(version.created.timestamp()),
        "owned_by": "bapo-server",
        "parent": base_name,
        "root": version.ref,
    }


def _usable(registry: Registry, caller: Caller) -> Sequence[AdapterVersion]:
    return registry.usable(user_id=caller.user_id, is_admin=caller.role is Role.ADMIN)


@router.get("/v1/models")
async def list_models(
    caller: CallerDep, registry: RegistryDep, settings: SettingsDep
) -> dict[str, Any]:
    usable = await run_in_threadpool(_usable, registry, caller)
    cards = [_adapter_card(version, settings.base_name) for version in usable]
    return {"object": "list", "data": [_base_card(settings.base_name), *cards]}


@router.get("/v1/models/{model:path}")
async def get_model(
    model: str, caller: CallerDep, registry: RegistryDep, settings: SettingsDep
) -> dict[str, Any]:
    if model in (settings.base_name, "base"):
        return _base_card(settings.base_name)
    for version in await run_in_threadpool(_usable, registry, caller):
        if model in (version.adapter_id, version.ref):
            return _adapter_card(version, settings.base_name)
    raise AdapterNotFound(model)
