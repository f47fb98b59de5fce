"""vLLM's own options: from the settings, `--vllm.…` among them, to what vLLM's parser makes of it.

Owns which of them the server sets by itself, and that a wrong one is one sentence: vLLM's parser
would print its usage and end the process. Starts nothing; `vllm.py` does.
Written against vLLM 0.32.
"""

from __future__ import annotations

import json
from argparse import Action, Namespace
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, NoReturn

import torch
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.launchers.launcher import validate_api_server_args
from vllm.platforms import current_platform
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
from vllm.utils.argparse_utils import FlexibleArgumentParser

from server.settings import MEBIBYTE, Settings

MANY = 1_000_000
"""vLLM's own bound on loaded adapters counts them; the pool's counts bytes, and is the one."""

SEVERAL_WORKERS = frozenset({"tensor_parallel_size", "pipeline_parallel_size"})


class WrongOption(ValueError):
    """An option that vLLM does not have, or not with this value; one sentence."""


class _Parser(FlexibleArgumentParser):  # type: ignore[misc]
    def error(self, message: str) -> NoReturn:
        raise WrongOption(" ".join(message.split()))


def parse_options(settings: Settings) -> Namespace:
    """What vLLM's own server would be started with. Raises WrongOption."""
    parser = make_arg_parser(_Parser())
    known = {flag: action for action in parser._actions for flag in action.option_strings}
    words: list[str] = []
    for name, value in _arguments(settings).items():
        flag = "--" + name.replace("_", "-")
        if flag not in known:
            close = get_close_matches(flag, known, n=1)
            hint = f": did you mean {close[0].removeprefix('--')}?" if close else ""
            raise WrongOption(f"vLLM has no option {flag.removeprefix('--')}{hint}")
        words += _words(flag, value, known)
    try:
        args: Namespace = parser.parse_args(words)
        validate_parsed_serve_args(args)
        if args.tool_parser_plugin:
            ToolParserManager.import_tool_parser(args.tool_parser_plugin)
        if args.reasoning_parser_plugin:
            ReasoningParserManager.import_reasoning_parser(args.reasoning_parser_plugin)
        validate_api_server_args(args)
        parsers = ReasoningParserManager.list_registered()
        if args.reasoning_parser and args.reasoning_parser not in parsers:
            raise WrongOption(f"reasoning-parser {args.reasoning_parser} is none of {parsers}")
    except (TypeError, ValueError, KeyError) as error:  # a WrongOption, too
        sentence = str(error.args[0]) if error.args else str(error)
        raise WrongOption(sentence.removeprefix("Error: ")) from error
    return args


def _arguments(settings: Settings) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": settings.model,
        "served_model_name": settings.base_name,
        "dtype": compute_dtype(settings.dtype),
        "enable_lora": True,
        "max_loras": settings.max_loras,
        "max_cpu_loras": MANY,
        "worker_extension_cls": "server.engine.worker.AdapterStaging",
        "max_lora_rank": settings.max_lora_rank,
        "max_model_len": settings.max_model_len,
        "otlp_traces_endpoint": settings.otlp_endpoint,
    }
    if current_platform.is_cpu():
        # One worker lives inside the engine's process; several need processes of their own.
        arguments["distributed_executor_backend"] = (
            "mp" if SEVERAL_WORKERS & settings.vllm.keys() else "uni"
        )
        arguments["kv_cache_memory_bytes"] = settings.kv_cache_mebibytes * MEBIBYTE
    return arguments | settings.vllm


def compute_dtype(requested: str) -> str:
    """`auto` becomes float32 on CPUs that only emulate bf16: there it is two orders slower."""
    if requested == "auto" and current_platform.is_cpu():
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return "auto" if native else "float32"
    return requested


def _words(flag: str, value: Any, known: Mapping[str, Action]) -> list[str]:
    """An option as it stands on a command line."""
    if value is None:
        return []
    if value is True:
        return [flag]
    if value is False:
        no = flag.replace("--", "--no-", 1)
        return [no] if no in known else []  # a flag without an opposite is off unless it is given
    several = isinstance(value, list) and known[flag].nargs in ("+", "*")
    return [flag, *map(_word, value if several else [value])]


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
