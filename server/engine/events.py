"""Errors in the middle of a stream: one event in our shape, and the end.

Owns what becomes of vLLM's error events, whose `code` is a number and after which it says `[DONE]`
as if the answer were whole. Everything else passes as it is.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from server.errors import ServerError, error_body

ERROR = 'data: {"error"'

Refusal = Callable[[dict[str, Any]], ServerError]
"""From vLLM's error to ours."""


async def in_our_shape(events: AsyncIterator[Any], refusal: Refusal) -> AsyncIterator[Any]:
    """The events up to the first error, which comes as OpenAI's and is the last."""
    failed = False
    async for event in events:
        if failed:
            continue  # so that vLLM's generator comes to its own end
        if isinstance(event, str) and event.startswith(ERROR):
            failed = True
            error = refusal(json.loads(event.removeprefix("data: "))["error"])
            body = error_body(str(error), error.type, error.code, error.param)
            yield f"data: {json.dumps(body)}\n\n"
        else:
            yield event
