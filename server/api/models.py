"""`GET /v1/models`: what this caller may use, the base first; no paths of the server."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from adapters.accounts import Caller, Role
from adapters.errors import AdapterNotFound
from adapters.registry import AdapterVersion
from server.dependencies import CallerDep, SettingsDep, ViewDep
from server.routing import select

router = APIRouter(tags=["models"])


class ModelCard(BaseModel):
    """OpenAI's model, with the base that an adapter belongs to and the version that answers."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "bapo-server"
    parent: str | None = None
    root: str


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


def _base_card(name: str) -> ModelCard:
    return ModelCard(id=name, root=name)


def _adapter_card(name: str, version: AdapterVersion, base_name: str) -> ModelCard:
    created = int(version.created.timestamp())
    return ModelCard(id=name, created=created, parent=base_name, root=version.ref)


def _rights(caller: Caller) -> dict[str, Any]:
    return {"user_id": caller.user_id, "is_admin": caller.role is Role.ADMIN}


@router.get("/v1/models")
async def list_models(caller: CallerDep, view: ViewDep, settings: SettingsDep) -> ModelList:
    base = settings.base_name
    usable = view.usable(**_rights(caller))
    return ModelList(
        data=[_base_card(base), *(_adapter_card(v.adapter_id, v, base) for v in usable)]
    )


@router.get("/v1/models/{model:path}")
async def get_model(
    model: str, caller: CallerDep, view: ViewDep, settings: SettingsDep
) -> ModelCard:
    """Any name that a request's `model` could have."""
    base = settings.base_name
    if model == base:
        return _base_card(base)
    if not model:  # which a request may leave out
        raise AdapterNotFound(model)
    version, _ = await run_in_threadpool(select, view, caller, None, model, base)
    return _base_card(base) if version is None else _adapter_card(model, version, base)
