"""vLLM's own options pass through, and a wrong one is one sentence instead of vLLM's usage."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from server.cli import vllm_options
from server.settings import Settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, when vLLM imports it
    from server.engine.options import WrongOption, parse_options


@pytest.mark.parametrize(
    ("words", "options", "rest"),
    [
        ([], {}, []),
        (["m", "--port", "1"], {}, ["m", "--port", "1"]),
        (["m", "--vllm.max-num-seqs", "4"], {"max_num_seqs": "4"}, ["m"]),
        (["--vllm.max_num_seqs=4", "m"], {"max_num_seqs": "4"}, ["m"]),
        (["--vllm.seed", "-1", "--port", "1"], {"seed": "-1"}, ["--port", "1"]),
        (["--vllm.enforce-eager", "--port", "1"], {"enforce_eager": True}, ["--port", "1"]),
        (["m", "--vllm.x", "a", "b", "--vllm.y"], {"x": ["a", "b"], "y": True}, ["m"]),
        (["m", "--vllm.x="], {"x": ""}, ["m"]),
    ],
)
def test_options_on_the_command_line(
    words: list[str], options: dict[str, Any], rest: list[str]
) -> None:
    assert vllm_options(words) == (options, rest)


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        ({"tensor_parallel_size": "2"}, "distributed_executor_backend", "mp"),
        ({"data_parallel_size": 2}, "data_parallel_size", 2),
        ({"data_parallel_size": 2}, "distributed_executor_backend", "uni"),
        ({"quantization": "fp8"}, "quantization", "fp8"),
        (
            {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"},
            "tool_call_parser",
            "hermes",
        ),
        ({"reasoning_parser": "qwen3"}, "reasoning_parser", "qwen3"),
        (
            {"speculative_config": '{"method": "ngram", "num_speculative_tokens": 3}'},
            "speculative_config",
            {"method": "ngram", "num_speculative_tokens": 3},
        ),
        (
            {"allowed_media_domains": ["a.org", "b.org"]},
            "allowed_media_domains",
            ["a.org", "b.org"],
        ),
        ({"enable_prefix_caching": False}, "enable_prefix_caching", False),
        ({"disable_log_stats": False}, "disable_log_stats", False),
    ],
)
def test_what_vllm_has_passes_through(options: dict[str, Any], name: str, value: Any) -> None:
    assert getattr(parse_options(Settings(vllm=options)), name) == value


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tensor_parallel_sise": 2}, "did you mean tensor-parallel-size?"),
        ({"xyzzy": 2}, "vLLM has no option xyzzy"),
        ({"tensor_parallel_size": "two"}, "'two'"),
        ({"max_num_seqs": ""}, "max-num-seqs"),
        ({"enable_auto_tool_choice": True}, "tool-call-parser"),
        ({"enable_auto_tool_choice": True, "tool_call_parser": "none-such"}, "none-such"),
        ({"reasoning_parser": "none-such"}, "none-such"),
    ],
)
def test_what_it_has_not_is_one_sentence(options: dict[str, Any], says: str) -> None:
    with pytest.raises(WrongOption) as refused:
        parse_options(Settings(vllm=options))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
