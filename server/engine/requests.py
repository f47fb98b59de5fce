"""vLLM's request models as our routes take them: what they stumble over is the request's fault.

vLLM's checks of a body, and the code that makes a prompt of it, suppose types that nobody has
checked yet: `"messages": null` is a TypeError in there, a content part that is a number an
AssertionError. Owns telling such a failure from one of the engine. Refuses to check anything.
"""

from __future__ import annotations

import traceback
from typing import Annotated, Any

from pydantic import ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from vllm.entrypoints.anthropic.protocol import (
    AnthropicCountTokensRequest,
    AnthropicMessagesRequest,
)
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.exceptions import VLLMClientError

STUMBLES = (TypeError, AttributeError, LookupError, AssertionError)
"""What code raises that met another type than it supposed."""
OF_THE_PROMPT = ("/vllm/renderers/", "/vllm/entrypoints/openai/responses/utils.py")
"""Where vLLM makes a prompt of a body."""


def _sensible(body: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(body)
    except (ValidationError, VLLMClientError):
        raise
    except STUMBLES as error:
        raise ValueError(f"the body does not fit: {error}") from error


ChatBody = Annotated[ChatCompletionRequest, WrapValidator(_sensible)]
CompletionBody = Annotated[CompletionRequest, WrapValidator(_sensible)]
ResponsesBody = Annotated[ResponsesRequest, WrapValidator(_sensible)]
MessagesBody = Annotated[AnthropicMessagesRequest, WrapValidator(_sensible)]
CountBody = Annotated[AnthropicCountTokensRequest, WrapValidator(_sensible)]


def makes_no_prompt(error: Exception) -> bool:
    """Whether vLLM stumbled over the request's own content while it made a prompt of it."""
    if not isinstance(error, STUMBLES):
        return False
    files = (frame.filename for frame in traceback.extract_tb(error.__traceback__))
    return any(place in file for file in files for place in OF_THE_PROMPT)
