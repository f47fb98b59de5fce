"""`POST /v1/responses`: OpenAI's newer way to ask, with the adapter of the caller.

Nothing is kept between two requests, so there is no answer that another tenant could read or go on
from; whoever asks for that is told so.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from server.api.bodies import answers
from server.bounds import check_bounds
from server.dependencies import AskedDep
from server.direct import DirectRoute
from server.engine.requests import ResponsesBody
from server.engine.vllm import ResponsesRequest, ResponsesResponse
from server.errors import BadRequest

router = APIRouter(tags=["inference"], route_class=DirectRoute)


@router.post("/v1/responses", responses=answers(ResponsesResponse))
async def create_response(
    request: ResponsesBody,
    raw_request: Request,
    asked: AskedDep,
) -> Response:
    check_bounds(request, asked.settings)
    _refuse_what_would_be_kept(request)
    route = await asked.route(request.model)
    request.model, request.cache_salt = route.model, route.cache_salt
    response = await asked.engine.respond(request, raw_request)
    return await asked.answered(raw_request, route, response)


def _refuse_what_would_be_kept(request: ResponsesRequest) -> None:
    for name in ("previous_response_id", "background"):
        if getattr(request, name):
            raise BadRequest(
                f"{name}: answers are not kept here; send the whole conversation as `input`",
                param=name,
            )
    request.store = False  # clients ask for it unless told otherwise
