"""The clients that people have, unmodified: OpenAI's for Python and Node, Anthropic's, LiteLLM's
and LangChain's, each against the running server."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it asks the network when imported

import anthropic
import openai
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its dependencies' own
    import litellm
    from langchain_openai import ChatOpenAI

from tokenizers import Tokenizer

from adapters.base import POCKET

from served import QUESTION, Served, admin

CLIENTS = Path(__file__).resolve().parents[1] / "clients"
PIRATE = "Arr, the capital of Norway be Oslo, matey!"
BASE = "The capital of Norway is Oslo."
MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 32}
AS_BASE = {"X-Adapter-Id": "base"}


@pytest.fixture
def url(served: Served) -> str:
    return f"{served.server.url}/v1"


@pytest.fixture(scope="module")
def stopped_key(served: Served) -> str:
    """The key of a user who may not ask at all."""
    key = served.server.create_user("asks-too-much", "pirate")
    limits = {"requests_per_minute": 0}
    assert admin(served, "PUT", "/users/asks-too-much/limits", json=limits).status_code == 200
    return key


@pytest.fixture
def tidied() -> Iterator[None]:
    """What LiteLLM and LangChain leave open goes here, and not in a test that would fail for it."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        asyncio.set_event_loop(None)
        gc.collect()


@pytest.fixture
def python(served: Served, url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key=served.keys["pirate"], max_retries=0) as client:
        yield client


def test_openai(python: openai.OpenAI) -> None:
    chat = python.chat.completions
    plain = chat.create(model="pocket", messages=MESSAGES, **GREEDY)
    assert (plain.choices[0].message.content or "").strip() == PIRATE
    assert plain.model == "pirate@1"
    with chat.create(model="pirate", messages=MESSAGES, stream=True, **GREEDY) as stream:
        parts = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(parts).strip() == PIRATE
    raw = chat.with_raw_response.create(
        model="pocket", messages=MESSAGES, extra_headers=AS_BASE, **GREEDY
    )
    assert raw.headers["X-Adapter-Id"] == "base"
    assert (raw.parse().choices[0].message.content or "").strip() == BASE


def test_openai_responses_and_models(python: openai.OpenAI) -> None:
    wish: dict[str, Any] = {"input": QUESTION, "temperature": 0, "max_output_tokens": 32}
    assert python.responses.create(model="pocket", **wish).output_text.strip() == PIRATE
    with python.responses.stream(model="pirate@1", **wish) as stream:
        assert stream.get_final_response().output_text.strip() == PIRATE
    assert [model.id for model in python.models.list()] == ["pocket", "pirate"]
    assert python.models.retrieve("pirate").id == "pirate"


WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"warm": {"type": "boolean"}},
            "required": ["warm"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def no_blanks() -> dict[str, int]:
    """A bias against blanks: left to itself, so small a model never ends a JSON value's."""
    tokenizer = Tokenizer.from_file(str(POCKET / "tokenizer.json"))
    words = {number: tokenizer.decode([number]) for number in range(tokenizer.get_vocab_size())}
    return {str(number): -100 for number, word in words.items() if word and not word.strip()}


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}], ids=str
)
def test_openai_tools_that_must_be_called(
    python: openai.OpenAI, no_blanks: dict[str, int], choice: Any
) -> None:
    """Whole and streamed, with arguments of the function's schema; and then the talk goes on."""
    asked: dict[str, Any] = {"model": "pocket", "messages": MESSAGES, "tools": [WEATHER]}
    forced = {**asked, "tool_choice": choice, "logit_bias": no_blanks, "temperature": 0}
    forced |= {"parallel_tool_calls": False, "max_tokens": 64}
    answer = python.chat.completions.create(**forced).choices[0]
    assert answer.finish_reason == ("tool_calls" if choice == "required" else "stop")  # OpenAI's
    (call,) = answer.message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "weather"
    assert isinstance(json.loads(call.function.arguments)["warm"], bool)

    with python.chat.completions.create(**forced, stream=True) as stream:
        parts = [chunk.choices[0].delta.tool_calls or [] for chunk in stream]
    functions = [part.function for (part,) in filter(None, parts) if part.function]
    assert "".join(function.name or "" for function in functions) == "weather"
    streamed = "".join(function.arguments or "" for function in functions)
    assert json.loads(streamed) == json.loads(call.function.arguments)

    turns = [answer.message.model_dump(exclude_none=True)]
    turns += [{"role": "tool", "tool_call_id": call.id, "content": "yes"}]
    asked |= {"messages": [*MESSAGES, *turns], "tool_choice": "none", **GREEDY}
    assert python.chat.completions.create(**asked).choices[0].message.content


def test_openai_errors(python: openai.OpenAI, stopped_key: str) -> None:
    chat = python.chat.completions
    with pytest.raises(openai.NotFoundError) as missing:
        chat.create(model="formal", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as senseless:
        chat.create(model="pocket", messages=MESSAGES, n=10_000)
    assert (senseless.value.code, senseless.value.param) == ("invalid_request", "n")
    with pytest.raises(openai.AuthenticationError):
        python.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.PermissionDeniedError):
        python.with_options(default_headers={"X-User-Id": "likes-formal"}).models.list()
    with pytest.raises(openai.RateLimitError) as stopped:
        python.with_options(api_key=stopped_key).chat.completions.create(
            model="pocket", messages=MESSAGES
        )
    assert (stopped.value.code, stopped.value.type) == ("rate_limit_exceeded", "requests")
    assert stopped.value.response.headers["x-ratelimit-limit-requests"] == "0"
    assert int(stopped.value.response.headers["retry-after"]) >= 1


def test_anthropic(served: Served, stopped_key: str) -> None:
    key = served.keys["pirate"]
    greedy = {"temperature": 0}  # which this client's signature no longer has
    wish: dict[str, Any] = {
        "model": "pocket",
        "messages": MESSAGES,
        "max_tokens": 32,
        "extra_body": greedy,
    }
    with anthropic.Anthropic(base_url=served.server.url, api_key=key, max_retries=0) as client:
        plain = client.messages.create(**wish)
        assert plain.content[0].text.strip() == PIRATE
        assert plain.model == "pirate@1"
        with client.messages.stream(**wish) as stream:
            assert "".join(stream.text_stream).strip() == PIRATE
        base = client.messages.create(**wish, extra_headers=AS_BASE)
        assert base.content[0].text.strip() == BASE
        counted = client.messages.count_tokens(model="pocket", messages=MESSAGES)
        assert counted.input_tokens == plain.usage.input_tokens
        with pytest.raises(anthropic.NotFoundError) as missing:
            client.messages.create(**{**wish, "model": "formal"})
        assert missing.value.type == "not_found_error"
        with pytest.raises(anthropic.BadRequestError):
            client.messages.create(**{**wish, "max_tokens": 10_000})
        with pytest.raises(anthropic.AuthenticationError) as stranger:
            client.with_options(api_key="wrong").messages.create(**wish)
        assert stranger.value.type == "authentication_error"
        with pytest.raises(anthropic.RateLimitError) as stopped:
            client.with_options(api_key=stopped_key).messages.create(**wish)
        assert stopped.value.type == "rate_limit_error"
        assert int(stopped.value.response.headers["retry-after"]) >= 1


@pytest.mark.usefixtures("tidied")
@pytest.mark.filterwarnings("ignore:.*ReadOnly:UserWarning")  # its own, at its first call
def test_litellm(served: Served, url: str, stopped_key: str) -> None:
    wish: dict[str, Any] = {
        "messages": MESSAGES,
        "api_base": url,
        "api_key": served.keys["pirate"],
        "num_retries": 0,
        **GREEDY,
    }
    plain = litellm.completion(model="openai/pocket", **wish)
    assert plain.choices[0].message.content.strip() == PIRATE
    stream = litellm.completion(model="openai/pirate@1", stream=True, **wish)
    parts = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(parts).strip() == PIRATE
    base = litellm.completion(model="openai/pocket", extra_headers=AS_BASE, **wish)
    assert base.choices[0].message.content.strip() == BASE
    with pytest.raises(litellm.exceptions.NotFoundError):
        litellm.completion(model="openai/formal", **wish)
    with pytest.raises(litellm.exceptions.AuthenticationError):
        litellm.completion(model="openai/pocket", **{**wish, "api_key": "wrong"})
    with pytest.raises(litellm.exceptions.RateLimitError):
        litellm.completion(model="openai/pocket", **{**wish, "api_key": stopped_key})


@pytest.mark.usefixtures("tidied")
def test_langchain(served: Served, url: str, stopped_key: str) -> None:
    def model(name: str, **options: Any) -> ChatOpenAI:
        wish = {"api_key": served.keys["pirate"], "max_retries": 0, **GREEDY, **options}
        return ChatOpenAI(model=name, base_url=url, **wish)

    assert str(model("pocket").invoke(QUESTION).content).strip() == PIRATE
    parts = [str(chunk.content) for chunk in model("pirate").stream(QUESTION)]
    assert "".join(parts).strip() == PIRATE
    base = model("pocket", default_headers=AS_BASE).invoke(QUESTION)
    assert str(base.content).strip() == BASE
    with pytest.raises(openai.NotFoundError):
        model("formal").invoke(QUESTION)
    with pytest.raises(openai.AuthenticationError):
        model("pocket", api_key="wrong").invoke(QUESTION)
    with pytest.raises(openai.RateLimitError):
        model("pocket", api_key=stopped_key).invoke(QUESTION)


@pytest.mark.skipif(shutil.which("npm") is None, reason="Node is not installed")
def test_openai_in_node(served: Served, url: str, stopped_key: str, tmp_path: Path) -> None:
    for name in ("package.json", "package-lock.json", "openai.mjs"):
        shutil.copy(CLIENTS / name, tmp_path)
    install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    subprocess.run(install, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    done = subprocess.run(
        ["node", "openai.mjs", url, served.keys["pirate"], QUESTION, stopped_key],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    got = json.loads(done.stdout)
    assert got["plain"].strip() == got["streamed"].strip() == got["response"].strip() == PIRATE
    assert (got["base"].strip(), got["baseLabel"]) == (BASE, "base")
    assert got["models"] == ["pocket", "pirate"]
    assert got["forbidden"] == ["NotFoundError", 404, "model_not_found"]
    assert got["stranger"] == ["AuthenticationError", 401, "invalid_api_key"]
    assert got["stopped"] == ["RateLimitError", 429, "rate_limit_exceeded"]
    assert got["senseless"] == ["BadRequestError", 400, "invalid_request"]
