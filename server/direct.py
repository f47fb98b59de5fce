"""Requests for answers reach their route directly; FastAPI's way stays for whatever is unusual.

For each request FastAPI works through lists of what a route's parameters may be, and has the
library for e-mail read the content type. Routes for answers have the same three parameters: a body,
the request and `Asked`. Owns calling them with these. What cannot be had so, another content type,
a body that is no JSON or does not fit, goes to FastAPI from the beginning, which finds the words.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import TypeAdapter

from server.dependencies import AskedDep, ask
from server.presence import while_present

JSON = "application/json"


class DirectRoute(APIRoute):
    """A route whose endpoint takes a body, the request and `AskedDep`, in this order."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        usual = super().get_route_handler()
        body_type, *others = _parameter_types(self.endpoint)
        if others != [Request, AskedDep]:
            raise TypeError(f"{self.name} does not take a body, the request and `AskedDep`")
        fit: TypeAdapter[Any] = TypeAdapter(body_type)

        async def answer(request: Request) -> Response:
            if request.headers.get("content-type") != JSON:
                return await usual(request)
            # FastAPI's own name for the stack on which it, too, leaves what ends with the request.
            asked = ask(request, request.scope["fastapi_inner_astack"])
            try:
                body = fit.validate_python(await request.json())
            except Exception:  # whatever it is, it is said there
                return await usual(request)
            response: Response = await self.endpoint(body, request, asked)
            return response

        async def answer_while_present(request: Request) -> Response:
            await request.body()  # what comes after it can only be the connection's end
            return await while_present(request.receive, answer(request))

        return answer_while_present


def _parameter_types(endpoint: Callable[..., Any]) -> list[Any]:
    return [p.annotation for p in inspect.signature(endpoint, eval_str=True).parameters.values()]
