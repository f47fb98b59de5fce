"""`GET /v1/models`: what this caller may use, the base first; no paths of the server.

Listed is only what can be served: what was published for another base, or is in quarantine, is
refused when it is asked for, here as in a request.
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from adapters.accounts import Caller, Role
from adapters.errors import AdapterNotFound
from adapters.registry import AdapterVersion
from server.dependencies import BaseDep, CallerDep, CanaryDep, SettingsDep, ViewDep
from server.routing import refuse_other_base, select

router = APIRouter(tags=["models"])


class ModelCard(BaseModel):
    """OpenAI's model, with the base that an adapter belongs to and the version that answers.

    `fingerprint` is the base's (`adapters/base.py`), for who made an adapter to compare with.
    """

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "bapo-server"
    parent: str | None = None
    root: str
    fingerprint: str


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


def _base_card(name: str, fingerprint: str) -> ModelCard:
    return ModelCard(id=name, root=name, fingerprint=fingerprint)


def _adapter_card(name: str, version: AdapterVersion, base_name: str) -> ModelCard:
    created = int(version.created.timestamp())
    return ModelCard(
        id=name,
        created=created,
        parent=base_name,
        root=version.ref,
        fingerprint=version.base_fingerprint,
    )


def _rights(caller: Caller) -> dict[str, Any]:
    return {"user_id": caller.user_id, "is_admin": caller.role is Role.ADMIN}


@router.get("/v1/models")
async def list_models(
    caller: CallerDep, view: ViewDep, canary: CanaryDep, base: BaseDep, settings: SettingsDep
) -> ModelList:
    name = settings.base_name
    served = [
        version
        for version in view.usable(**_rights(caller))
        if version.base_fingerprint == base.fingerprint and not canary.holds(version)
    ]
    return ModelList(
        data=[
            _base_card(name, base.fingerprint),
            *(_adapter_card(v.adapter_id, v, name) for v in served),
        ]
    )


@router.get("/v1/models/{model:path}")
async def get_model(
    model: str,
    caller: CallerDep,
    view: ViewDep,
    canary: CanaryDep,
    base: BaseDep,
    settings: SettingsDep,
) -> ModelCard:
    """Any name that a request's `model` could have."""
    name = settings.base_name
    if model == name:
        return _base_card(name, base.fingerprint)
    if not model:  # which a request may leave out
        raise AdapterNotFound(model)
    version, _ = await run_in_threadpool(select, view, caller, None, model, name)
    if version is None:
        return _base_card(name, base.fingerprint)
    refuse_other_base(version, base.fingerprint)
    canary.refuse_quarantined(version)
    return _adapter_card(model, version, name)
