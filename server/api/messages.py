"""`POST /v1/messages` and `…/count_tokens`: Anthropic's shape, with the adapter of the caller."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from server.api.bodies import answers
from server.bounds import check_bounds
from server.dependencies import AskedDep
from server.direct import DirectRoute
from server.engine.requests import CountBody, MessagesBody
from server.engine.vllm import AnthropicCountTokensResponse, AnthropicMessagesResponse

router = APIRouter(tags=["inference"], route_class=DirectRoute)


@router.post("/v1/messages", responses=answers(AnthropicMessagesResponse))
async def create_message(
    request: MessagesBody,
    raw_request: Request,
    asked: AskedDep,
) -> Response:
    check_bounds(request, asked.settings)
    route = await asked.route(request.model)
    request.model, request.cache_salt = route.model, route.cache_salt
    response = await asked.engine.message(request, raw_request)
    return await asked.answered(raw_request, route, response)


@router.post("/v1/messages/count_tokens", responses={200: {"model": AnthropicCountTokensResponse}})
async def count_tokens(
    request: CountBody,
    raw_request: Request,
    asked: AskedDep,
) -> Response:
    """The prompt's tokens, the same with every adapter: none is loaded for it."""
    check_bounds(request, asked.settings)
    await asked.router.choose(asked.caller, asked.adapter, request.model)
    request.model = asked.engine.base_name
    return await asked.engine.count(request, raw_request)
