"""`GET /v1/models`: what this caller may use, the base first; no paths of the server."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from adapters.accounts import Caller, Role
from adapters.errors import AdapterNotFound
from adapters.registry import AdapterVersion
from server.dependencies import CallerDep, SettingsDep, ViewDep

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


def _rights(caller: Caller) -> dict[str, Any]:
    return {"user_id": caller.user_id, "is_admin": caller.role is Role.ADMIN}


@router.get("/v1/models")
async def list_models(caller: CallerDep, view: ViewDep, settings: SettingsDep) -> dict[str, Any]:
    usable = view.usable(**_rights(caller))
    cards = [_adapter_card(version, settings.base_name) for version in usable]
    return {"object": "list", "data": [_base_card(settings.base_name), *cards]}


@router.get("/v1/models/{model:path}")
async def get_model(
    model: str, caller: CallerDep, view: ViewDep, settings: SettingsDep
) -> dict[str, Any]:
    if model in (settings.base_name, "base"):
        return _base_card(settings.base_name)
    version = view.resolve(model.partition("@")[0], **_rights(caller))
    if model not in (version.adapter_id, version.ref):
        raise AdapterNotFound(model)
    return _adapter_card(version, settings.base_name)
