"""`POST /v1/chat/completions`: OpenAI's chat, with the adapter of the caller."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from server.api.bodies import answers
from server.bounds import check_bounds
from server.dependencies import AskedDep
from server.direct import DirectRoute
from server.engine.requests import ChatBody
from server.engine.vllm import ChatCompletionResponse

router = APIRouter(tags=["inference"], route_class=DirectRoute)


@router.post("/v1/chat/completions", responses=answers(ChatCompletionResponse))
async def create_chat_completion(
    request: ChatBody,
    raw_request: Request,
    asked: AskedDep,
) -> Response:
    check_bounds(request, asked.settings)
    route = await asked.route(request.model)
    request.model, request.cache_salt = route.model, route.cache_salt
    response = await asked.engine.chat(request, raw_request)
    return await asked.answered(raw_request, route, response)
