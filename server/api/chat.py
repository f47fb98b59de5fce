"""`POST /v1/chat/completions`: OpenAI's chat, with the adapter of the caller."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from server.dependencies import AdapterHeader, CallerDep, EngineDep, RoutesDep
from server.engine.vllm import ChatCompletionRequest

router = APIRouter(tags=["inference"])


@router.post("/v1/chat/completions")
async def create_chat_completion(
    request: ChatCompletionRequest,
    raw_request: Request,
    caller: CallerDep,
    adapter: AdapterHeader,
    engine: EngineDep,
    routes: RoutesDep,
) -> Response:
    route = await routes.route(caller, adapter, request.model)
    request.model, request.cache_salt = route.model, route.cache_salt
    response = await engine.chat(request, raw_request)
    response.headers.update(route.headers)
    return response
