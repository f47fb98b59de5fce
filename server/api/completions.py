"""`POST /v1/completions`: OpenAI's older text completion, with the adapter of the caller."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from server.api.bodies import answers
from server.bounds import check_bounds
from server.dependencies import AskedDep
from server.direct import DirectRoute
from server.engine.requests import CompletionBody
from server.engine.vllm import CompletionResponse

router = APIRouter(tags=["inference"], route_class=DirectRoute)


@router.post("/v1/completions", responses=answers(CompletionResponse))
async def create_completion(
    request: CompletionBody,
    raw_request: Request,
    asked: AskedDep,
) -> Response:
    check_bounds(request, asked.settings)
    route = await asked.route(request.model)
    request.model, request.cache_salt = route.model, route.cache_salt
    response = await asked.engine.complete(request, raw_request)
    return await asked.answered(raw_request, route, response)
