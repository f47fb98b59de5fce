"""`/v1/load_lora_adapter` and `/v1/unload_lora_adapter`, as vLLM's tools call them, for admins.

They name an adapter of the registry, never a path: loading brings it into the engine's memory
before its first request does, unloading takes it out when its last request has ended. Neither
changes what anybody may use; the next request for an unloaded adapter loads it again.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from adapters.names import BASE
from server.dependencies import AdminDep, LiveDep
from server.errors import BadRequest

router = APIRouter(tags=["admin"])


class LoraName(BaseModel):
    """vLLM's own body, less the path."""

    model_config = ConfigDict(extra="forbid")

    lora_name: str = Field(min_length=1, max_length=200, description="`<adapter>[@version]`")


class LoraState(BaseModel):
    adapter: str
    resident: bool


@router.post("/v1/load_lora_adapter")
async def load_lora_adapter(body: LoraName, admin: AdminDep, live: LiveDep) -> LoraState:
    """Read the adapter into the engine's memory."""
    async with AsyncExitStack() as held:
        route = await live.router.route(admin, body.lora_name, None, held)
    if route.label == BASE:
        raise BadRequest("the base is always loaded: name an adapter", param="lora_name")
    return LoraState(adapter=route.label, resident=True)


@router.post("/v1/unload_lora_adapter")
async def unload_lora_adapter(body: LoraName, admin: AdminDep, live: LiveDep) -> LoraState:
    """Take every version of the adapter out of the engine's memory."""
    version, _ = await live.router.choose(admin, body.lora_name, None)
    if version is None:
        raise BadRequest("the base cannot be unloaded: name an adapter", param="lora_name")
    live.pool.retire(version.adapter_id)
    return LoraState(adapter=version.adapter_id, resident=False)
