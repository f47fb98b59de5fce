"""`POST /v1/messages` and `…/count_tokens`: Anthropic's shape, with the adapter of the caller."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from server.api.bodies import answers
from server.bounds import check_bounds
from server.dependencies import AdapterHeader, CallerDep, EngineDep, RoutesDep, SettingsDep
from server.engine.vllm import (
    AnthropicCountTokensRequest,
    AnthropicCountTokensResponse,
    AnthropicMessagesRequest,
    AnthropicMessagesResponse,
)

router = APIRouter(tags=["inference"])


@router.post("/v1/messages", responses=answers(AnthropicMessagesResponse))
async def create_message(
    request: AnthropicMessagesRequest,
    raw_request: Request,
    caller: CallerDep,
    adapter: AdapterHeader,
    engine: EngineDep,
    routes: RoutesDep,
    settings: SettingsDep,
) -> Response:
    check_bounds(request, settings)
    route = await routes.route(caller, adapter, request.model)
    request.model, request.cache_salt = route.model, route.cache_salt
    response = await engine.message(request, raw_request)
    response.headers.update(route.headers)
    return response


@router.post("/v1/messages/count_tokens", responses={200: {"model": AnthropicCountTokensResponse}})
async def count_tokens(
    request: AnthropicCountTokensRequest,
    raw_request: Request,
    caller: CallerDep,
    adapter: AdapterHeader,
    engine: EngineDep,
    routes: RoutesDep,
    settings: SettingsDep,
) -> Response:
    """The prompt's tokens, the same with every adapter: none is loaded for it."""
    check_bounds(request, settings)
    await routes.router.choose(caller, adapter, request.model)
    request.model = engine.base_name
    return await engine.count(request, raw_request)
