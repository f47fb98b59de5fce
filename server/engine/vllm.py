"""The one module that knows vLLM's serving layer: it starts the engine and calls its handlers.

Owns the engine's life, adapters inside it, and the translation of vLLM's
errors into ours. Which adapter a request gets, and who asks, is decided before it comes here.
Invariant: a request reaches vLLM only with a `model` and a `cache_salt` that the server set.
Written against vLLM 0.32, which is pinned; re-read it at every upgrade.
"""

from __future__ import annotations

import asyncio
import gc
import json
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import structlog
import vllm.v1.engine.async_llm as async_llm
import vllm.v1.engine.utils as engine_processes
from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import REGISTRY
from starlette.datastructures import State
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.anthropic.api_router import count_tokens, create_messages
from vllm.entrypoints.anthropic.protocol import (
    AnthropicCountTokensRequest,
    AnthropicCountTokensResponse,
    AnthropicMessagesRequest,
    AnthropicMessagesResponse,
)
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.openai.chat_completion.api_router import create_chat_completion
from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionRequest,
    ChatCompletionResponse,
)
from vllm.entrypoints.openai.completion.api_router import create_completion
from vllm.entrypoints.openai.completion.protocol import CompletionRequest, CompletionResponse
from vllm.entrypoints.openai.responses.api_router import create_responses
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest, ResponsesResponse
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import VLLMClientError
from vllm.inputs import TextPrompt
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.utils import func_utils
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from server.engine import bursts, rendering, requests, sequences, warm
from server.engine.events import in_our_shape
from server.engine.options import parse_options
from server.errors import BadRequest, EngineRefusal, EngineUnavailable, ServerError
from server.meter import current
from server.presence import Stream
from server.settings import Settings

__all__ = [
    "REFUSED_BODY",
    "STEERING_HEADERS",
    "AnthropicCountTokensRequest",
    "AnthropicCountTokensResponse",
    "AnthropicMessagesRequest",
    "AnthropicMessagesResponse",
    "ChatCompletionRequest",
    "ChatCompletionResponse",
    "CompletionRequest",
    "CompletionResponse",
    "Engine",
    "ResponsesRequest",
    "ResponsesResponse",
]

log = structlog.get_logger(__name__)

T = TypeVar("T")

# Request headers by which a client could steer vLLM's scheduling; the server takes them out.
STEERING_HEADERS = frozenset({b"x-data-parallel-rank", b"x-session-id", b"x-vllm-priority"})
STEERING_FIELDS: dict[str, Any] = {
    "priority": 0,
    "kv_transfer_params": None,
    "ec_transfer_params": None,
    "session_id": None,
    "vllm_xargs": None,
}
"""What a body could say to the scheduler, other engines or vLLM's plug-ins; and says instead."""
REFUSED_BODY = VLLMClientError
"""What vLLM's request models raise; pydantic takes only a ValueError for an invalid value."""
STAGING_POLLS = (0.002, 0.05)
"""Seconds between two questions whether an adapter has been read: at first, and at most."""
WATCH_SECONDS = 0.5
"""Between two looks whether the engine that is to answer is still alive."""
CANARY_TOKENS, CANARY_TEMPERATURE = 4, 0.3
NO_PROMPT = "no prompt can be made of this: look at the types in its messages, input and tools"
STOPPED = "the engine has stopped; it will be back, try again"


class Handler(Protocol):
    def __call__(self, request: Any, raw_request: Request) -> Awaitable[Response]: ...


class Engine:
    """A started vLLM engine and the handlers over it."""

    def __init__(self, llm: AsyncLLM, state: State, name: str) -> None:
        self._llm = llm
        self._state = state
        self._stopped = False
        self.base_name = name

    @classmethod
    async def start(cls, settings: Settings, state: State) -> Engine:
        """Start the engine and fill `state`, the application's, as vLLM's handlers expect it.

        Takes tens of seconds; the event loop stays free meanwhile. Raises whatever vLLM raises.
        """
        args = parse_options(settings)
        if warm.applies() and not args.numa_bind:  # binding needs a process started by numactl
            engine_processes.get_mp_context = warm.Context
        async_llm.OutputProcessor = sequences.CountedOutputs
        config = await asyncio.to_thread(AsyncEngineArgs.from_cli_args(args).create_engine_config)
        async with AsyncExitStack() as undo:
            llm = await asyncio.to_thread(
                AsyncLLM.from_vllm_config, config, disable_log_stats=args.disable_log_stats
            )
            undo.callback(llm.shutdown)
            _without_names_in_labels(llm)
            bursts.install(llm.engine_core)
            if not args.trust_request_chat_template:  # such a one may never come to its end
                rendering.install(llm.renderer)
            await init_app_state(llm, state, args, await llm.get_supported_tasks())
            undo.pop_all()
        _settle_the_heap()
        return cls(llm, state, settings.base_name)

    def stop(self) -> None:
        self._stopped = True
        self._llm.shutdown()
        let_go_of_tokenizers()

    def give_up(self) -> None:
        """Count as dead from now on; whoever waits for an answer hears it now. On the event loop.

        vLLM's shutdown alone leaves them waiting for ever.
        """
        self._stopped = True
        self._llm.output_processor.propagate_error(EngineDeadError())

    @property
    def needs_the_cores(self) -> bool:
        """Whether somebody waits for tokens, and this machine's cores compute them."""
        return current_platform.is_cpu() and bool(self._llm.output_processor.request_states)

    @property
    def alive(self) -> bool:
        return not (self._stopped or self._llm.errored)

    async def base_answers(self, question: str, samples: int = 0) -> list[tuple[int, ...]]:
        """How the base begins to answer, token ids: greedily, or so many times by chance.

        Nothing of it comes from a cache. Where several engines run side by side, each of them
        answers greedily. Raises EngineUnavailable, EngineRefusal.
        """
        tokenizer = self._llm.get_tokenizer()
        text = question  # as it is for a model that has never heard of chats
        if getattr(tokenizer, "chat_template", None):
            turn = [{"role": "user", "content": question}]
            text = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        params = SamplingParams(
            n=max(1, samples),
            temperature=CANARY_TEMPERATURE if samples else 0.0,
            max_tokens=CANARY_TOKENS,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        engines = len(self._llm.engine_core.core_engines)
        asked = range(engines) if engines > 1 and not samples else [None]

        async def answers() -> list[tuple[int, ...]]:
            found: list[tuple[int, ...]] = []
            for engine in asked:
                prompt = TextPrompt(prompt=text, cache_salt=secrets.token_hex(16))
                name = f"canary-{secrets.token_hex(8)}"
                async for output in self._llm.generate(
                    prompt, params, name, data_parallel_rank=engine
                ):
                    found += [tuple(one.token_ids) for one in output.outputs]
            return found

        return await self._guarded(lambda: self._while_alive(answers()))

    async def memory_is_sound(self) -> bool:
        """Whether no running or past request has left NaN or infinity in the engine's memory.

        Layer by layer, so that nobody's stream waits for more than one.
        """
        layers = max(await self._ask_workers("memory_layers"))
        for layer in range(layers):
            if not all(await self._ask_workers("layer_is_finite", layer)):
                return False
        return True

    @property
    def max_model_len(self) -> int:
        return int(self._llm.model_config.max_model_len)

    @property
    def bytes_a_byte(self) -> float:
        """Host memory for each byte of an adapter's file, which holds bf16."""
        return float(self._llm.vllm_config.lora_config.lora_dtype.itemsize) / 2

    async def stage_adapter(self, name: str, engine_id: int, folder: Path) -> None:
        """Have the worker bring the adapter in `folder` into its memory, beside its steps."""
        progress = set(await self._ask_workers("stage_adapter", name, engine_id, str(folder)))
        pause, longest = STAGING_POLLS
        while progress != {"ready"}:
            if "reading" in progress:  # what is to be copied goes on by being asked
                await asyncio.sleep(pause)
                pause = min(2 * pause, longest)
            progress = set(await self._ask_workers("go_on_staging", engine_id))

    async def add_adapter(self, name: str, engine_id: int, folder: Path) -> None:
        """Give a staged adapter a slot, and make it known to the handlers as `name`."""
        request = LoRARequest(name, engine_id, str(folder))
        await self._guarded(lambda: self._while_alive(self._llm.add_lora(request)))
        self._state.openai_serving_models.lora_requests[name] = request

    async def remove_adapter(self, name: str, engine_id: int) -> None:
        """Forget the adapter and free its memory; unknown ones are fine."""
        self._state.openai_serving_models.lora_requests.pop(name, None)
        await self._ask_workers("forget_adapter", engine_id)

    async def resident_adapters(self) -> dict[str, list[int]]:
        """Engine ids in the worker's memory ("host"), and of those the ones in a slot ("slots")."""
        found: dict[str, list[int]] = (await self._ask_workers("resident_adapters"))[0]
        return found

    async def chat(self, request: ChatCompletionRequest, raw_request: Request) -> Response:
        return await self._call(create_chat_completion, request, raw_request)

    async def complete(self, request: CompletionRequest, raw_request: Request) -> Response:
        return await self._call(create_completion, request, raw_request)

    async def respond(self, request: ResponsesRequest, raw_request: Request) -> Response:
        return await self._call(create_responses, request, raw_request)

    async def message(self, request: AnthropicMessagesRequest, raw_request: Request) -> Response:
        return await self._call(create_messages, request, raw_request)

    async def count(self, request: AnthropicCountTokensRequest, raw_request: Request) -> Response:
        return await self._call(count_tokens, request, raw_request)

    async def _call(self, handler: Handler, request: Any, raw_request: Request) -> Response:
        for name in STEERING_FIELDS.keys() & type(request).model_fields.keys():
            setattr(request, name, STEERING_FIELDS[name])
        named = type(request).model_fields.get("request_id")
        if named and "request_id" in request.model_fields_set:
            # An answer's id, by which feedback will know it, is nobody's to choose.
            made = cast("Callable[[], str] | None", named.default_factory)
            request.request_id = made() if made else named.default
        with rendering.prompt_of(await raw_request.body()):
            response = await self._guarded(lambda: _alone(handler)(request, raw_request))
        current().told = sequences.told(getattr(raw_request.state, "request_metadata", None))
        if isinstance(response, JSONResponse) and response.status_code >= 400:
            if not self.alive:
                raise EngineUnavailable(STOPPED)
            error = json.loads(bytes(response.body))["error"]
            raise _refusal(error["message"], response.status_code, error.get("param"))
        if isinstance(response, StreamingResponse):
            events = in_our_shape(aiter(response.body_iterator), self._refusal)
            return Stream(events, headers=response.headers)
        return response

    def _refusal(self, error: dict[str, Any]) -> ServerError:
        """What a stream that has begun ends with."""
        if not self.alive:
            return EngineUnavailable(STOPPED)
        return _refusal(error["message"], int(error["code"]), error.get("param"))

    async def _ask_workers(self, method: str, *args: Any) -> list[Any]:
        """Call a method of `worker.AdapterStaging`; an answer from each worker of each engine.

        vLLM's own `collective_rpc` calls them all, too, but tells what the first engine answered.
        """
        ask = self._llm.engine_core.call_utility_all_async
        answers = await self._guarded(
            lambda: self._while_alive(ask("collective_rpc", method, None, args, None))
        )
        return [answer for engine in answers for answer in engine]

    async def _while_alive(self, call: Awaitable[T]) -> T:
        """The call's result; vLLM leaves calls to an engine that died unanswered for ever."""
        waiting = asyncio.ensure_future(call)
        try:
            while not waiting.done():
                await asyncio.wait([waiting], timeout=WATCH_SECONDS)
                if not self.alive and not waiting.done():
                    raise EngineDeadError
            return waiting.result()
        finally:
            waiting.cancel()

    async def _guarded(self, call: Callable[[], Awaitable[T]]) -> T:
        """The call's result, its errors in our words."""
        try:
            return await call()
        except EngineDeadError as error:
            raise EngineUnavailable(STOPPED) from error
        except Exception as error:
            if requests.makes_no_prompt(error):
                log.info("no_prompt", exc_info=error)
                raise BadRequest(NO_PROMPT) from error
            answer = create_error_response(error).error
            if answer.code >= 500:
                log.error("engine_error", exc_info=error)
            raise _refusal(answer.message, answer.code, answer.param) from error


def _alone(handler: Any) -> Handler:
    """vLLM's handler without the two tasks in which it listens for the client's leaving itself."""
    return cast(Handler, handler.__wrapped__)


def let_go_of_tokenizers() -> None:
    """Have vLLM forget which keywords a chat template's function takes.

    It remembers that by the function, which holds the tokenizers of its engine: three copies for
    each engine that has died, megabytes for a small vocabulary.
    """
    func_utils._supports_kw.cache_clear()


def _settle_the_heap() -> None:
    """Have the garbage collector pass over what is there to stay, as vLLM's own server does.

    A look at all that torch and vLLM keep takes half a second, in which nobody is answered. What
    an engine before this one left is looked at once more, or it would stay, too.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _without_names_in_labels(llm: AsyncLLM) -> None:
    """Take out the metric that keeps every combination of adapters' names for ever."""
    for stats in llm.logger_manager.stat_loggers if llm.logger_manager else ():
        if (leaking := getattr(stats, "gauge_lora_info", None)) is not None:
            stats.gauge_lora_info = None
            REGISTRY.unregister(leaking)


def _refusal(message: str, status: int, param: str | None) -> EngineRefusal:
    if status >= 500:  # vLLM's words may name paths of this machine: they are in the log
        message = "the engine could not do this; the server's log has the details"
    return EngineRefusal(message, status=status, param=param)
