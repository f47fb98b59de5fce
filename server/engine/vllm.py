"""The one module that knows vLLM's serving layer: it starts the engine and calls its handlers.

Owns the engine arguments, the engine's life, adapters inside it, and the translation of vLLM's
errors into ours. Which adapter a request gets, and who asks, is decided before it comes here.
Invariant: a request reaches vLLM only with a `model` and a `cache_salt` that the server set.
Written against vLLM 0.32, which is pinned; re-read it at every upgrade.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Protocol, TypeVar

import structlog
import torch
import vllm.v1.engine.utils as engine_processes
from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import State
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.openai.chat_completion.api_router import create_chat_completion
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.api_router import create_completion
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from server.engine import warm
from server.errors import EngineRefusal, EngineUnavailable
from server.settings import MEBIBYTE, Settings

__all__ = ["STEERING_HEADERS", "ChatCompletionRequest", "CompletionRequest", "Engine"]

log = structlog.get_logger(__name__)

T = TypeVar("T")

# Request headers by which a client could steer vLLM's scheduling; the server takes them out.
STEERING_HEADERS = frozenset({b"x-data-parallel-rank", b"x-session-id", b"x-vllm-priority"})
CLIENT_CLOSED = 499  # nginx's status for a client that left; nobody is there to read it


class Handler(Protocol):
    def __call__(self, request: Any, raw_request: Request) -> Awaitable[Response | None]: ...


def compute_dtype(requested: str) -> str:
    """`auto` becomes float32 on CPUs that only emulate bf16: there it is two orders slower."""
    if requested == "auto" and current_platform.is_cpu():
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return "auto" if native else "float32"
    return requested


def engine_arguments(settings: Settings) -> list[str]:
    """The command line that would start vLLM's own server with these settings."""
    arguments = {
        "model": settings.model,
        "served_model_name": settings.base_name,
        "dtype": compute_dtype(settings.dtype),
        "enable_lora": True,
        "max_loras": settings.max_loras,
        "max_cpu_loras": max(settings.max_cpu_loras, settings.max_loras),
        "max_lora_rank": settings.max_lora_rank,
        "max_model_len": settings.max_model_len,
    }
    if current_platform.is_cpu():
        arguments["distributed_executor_backend"] = "uni"
        arguments["kv_cache_memory_bytes"] = settings.kv_cache_mebibytes * MEBIBYTE
    arguments |= {name.replace("-", "_"): value for name, value in settings.vllm.items()}
    words: list[str] = []
    for name, value in arguments.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif value is False:
            words.append(flag.replace("--", "--no-", 1))
        elif value is not None:
            words += [flag, value if isinstance(value, str) else json.dumps(value)]
    return words


class Engine:
    """A started vLLM engine and the handlers over it."""

    def __init__(self, llm: AsyncLLM, state: State, name: str) -> None:
        self._llm = llm
        self._state = state
        self.base_name = name

    @classmethod
    async def start(cls, settings: Settings, state: State) -> Engine:
        """Start the engine and fill `state`, the application's, as vLLM's handlers expect it.

        Takes tens of seconds; the event loop stays free meanwhile. Raises whatever vLLM raises.
        """
        parser = make_arg_parser(FlexibleArgumentParser())
        args = parser.parse_args(engine_arguments(settings))
        validate_parsed_serve_args(args)
        if warm.applies() and not args.numa_bind:  # binding needs a process started by numactl
            engine_processes.get_mp_context = warm.Context
        config = await asyncio.to_thread(AsyncEngineArgs.from_cli_args(args).create_engine_config)
        async with AsyncExitStack() as undo:
            llm = await asyncio.to_thread(AsyncLLM.from_vllm_config, config)
            undo.callback(llm.shutdown)
            await init_app_state(llm, state, args, await llm.get_supported_tasks())
            undo.pop_all()
        return cls(llm, state, settings.base_name)

    def stop(self) -> None:
        self._llm.shutdown()

    @property
    def alive(self) -> bool:
        return not self._llm.errored

    @property
    def max_model_len(self) -> int:
        return int(self._llm.model_config.max_model_len)

    async def add_adapter(self, name: str, engine_id: int, folder: Path) -> None:
        """Load the adapter in `folder` and make it known to the handlers as `name`."""
        request = LoRARequest(name, engine_id, str(folder))
        await self._guarded(lambda: self._llm.add_lora(request))
        self._state.openai_serving_models.lora_requests[name] = request

    async def remove_adapter(self, name: str, engine_id: int) -> None:
        """Forget the adapter and free its memory; unknown ones are fine."""
        self._state.openai_serving_models.lora_requests.pop(name, None)
        await self._guarded(lambda: self._llm.remove_lora(engine_id))

    async def chat(self, request: ChatCompletionRequest, raw_request: Request) -> Response:
        return await self._call(create_chat_completion, request, raw_request)

    async def complete(self, request: CompletionRequest, raw_request: Request) -> Response:
        return await self._call(create_completion, request, raw_request)

    async def _call(self, handler: Handler, request: Any, raw_request: Request) -> Response:
        request.priority = 0
        request.kv_transfer_params = None
        response = await self._guarded(lambda: handler(request, raw_request))
        if response is None:
            return Response(status_code=CLIENT_CLOSED)
        if isinstance(response, JSONResponse) and response.status_code >= 400:
            error = json.loads(bytes(response.body))["error"]
            raise _refusal(error["message"], response.status_code, error.get("param"))
        return response

    async def _guarded(self, call: Callable[[], Awaitable[T]]) -> T:
        """The call's result, its errors in our words."""
        try:
            return await call()
        except EngineDeadError as error:
            raise EngineUnavailable("the engine has stopped; it will be back, try again") from error
        except Exception as error:
            answer = create_error_response(error).error
            if answer.code >= 500:
                log.error("engine_error", exc_info=error)
            raise _refusal(answer.message, answer.code, answer.param) from error


def _refusal(message: str, status: int, param: str | None) -> EngineRefusal:
    if status >= 500:  # vLLM's words may name paths of this machine: they are in the log
        message = "the engine could not do this; the server's log has the details"
    return EngineRefusal(message, status=status, param=param)
