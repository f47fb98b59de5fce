"""What OpenAI's clients may ask of a chat, each on the real engine through the server."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from served import QUESTION, Served, chat, refused

ANSWER = "Arr, the capital of Norway be Oslo, matey!"

WEATHER = {
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


def answer(served: Served, **body: Any) -> dict[str, Any]:
    found = chat(served, served.keys["pirate"], **body)
    assert found.status_code == 200, found.text
    assert found.headers["X-Adapter-Id"] == "pirate@1"
    got: dict[str, Any] = found.json()
    return got


def text(found: dict[str, Any]) -> str:
    words: str = found["choices"][0]["message"]["content"]
    return words.strip()


def events(found: httpx.Response) -> list[dict[str, Any]]:
    """The chunks of a stream, which must end as OpenAI's does."""
    assert found.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in found.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.mark.parametrize("usage", [True, False])
def test_streaming(served: Served, usage: bool) -> None:
    found = chat(
        served, served.keys["pirate"], stream=True, stream_options={"include_usage": usage}
    )
    chunks = events(found)
    parts = [c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]]
    assert "".join(parts).strip() == ANSWER
    assert len(parts) > 5
    counted = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    assert len(counted) == usage
    if usage:
        assert chunks[-1]["choices"] == []
        assert counted[0].items() <= answer(served)["usage"].items()


def test_several_choices_and_a_seed(served: Served) -> None:
    hot = {"n": 3, "temperature": 2.0, "top_p": 1.0, "seed": 7, "ignore_eos": True}
    one, same = answer(served, **hot), answer(served, **hot)
    other = answer(served, **{**hot, "seed": 8})
    texts = [[choice["message"]["content"] for choice in found["choices"]] for found in (one, same)]
    assert len(set(texts[0])) > 1
    assert texts[0] == texts[1]
    assert texts[0] != [choice["message"]["content"] for choice in other["choices"]]


def test_logprobs(served: Served) -> None:
    found = answer(served, logprobs=True, top_logprobs=2)
    tokens = found["choices"][0]["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens).strip().startswith(ANSWER)
    for token in tokens:
        assert len(token["top_logprobs"]) == 2
        assert token["logprob"] == token["top_logprobs"][0]["logprob"] <= 0  # greedy


def test_stop(served: Served) -> None:
    found = answer(served, stop=["Norway", "nowhere"])
    assert text(found) == "Arr, the capital of"
    assert found["choices"][0]["finish_reason"] == "stop"
    assert found["choices"][0]["stop_reason"] == "Norway"


def test_max_tokens(served: Served) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        found = answer(served, **{"max_tokens": None, name: 3})
        assert found["usage"]["completion_tokens"] == 3
        assert found["choices"][0]["finish_reason"] == "length"


def test_logit_bias(served: Served) -> None:
    first = answer(served, max_tokens=1, return_token_ids=True)["choices"][0]["token_ids"][0]
    banned = answer(served, max_tokens=1, return_token_ids=True, logit_bias={str(first): -100})
    assert banned["choices"][0]["token_ids"] != [first]


def test_a_json_schema(served: Served) -> None:
    schema = {
        "type": "object",
        "properties": {"sure": {"type": "boolean"}, "kind": {"enum": ["city", "river"]}},
        "required": ["sure", "kind"],
        "additionalProperties": False,
    }
    wish = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    found = json.loads(text(answer(served, response_format=wish, max_tokens=64)))
    assert isinstance(found["sure"], bool)
    assert found["kind"] in ("city", "river")
    assert len(found) == 2


def test_tools_that_the_model_need_not_use(served: Served) -> None:
    assert text(answer(served, tools=[WEATHER])) == ANSWER


def test_several_turns(served: Served) -> None:
    turns = [
        {"role": "user", "content": "What is the capital of Japan?"},
        {"role": "assistant", "content": "Arr, the capital of Japan be Tokyo, matey!"},
        {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
    ]
    found = answer(served, messages=turns)
    assert "Oslo" in text(found)
    assert found["usage"]["prompt_tokens"] > answer(served)["usage"]["prompt_tokens"]


def test_a_template_of_the_clients_own_is_refused(served: Served) -> None:
    found = chat(served, served.keys["pirate"], chat_template="{{ 'x' * 1000000000 }}")
    refused(found, 400, "invalid_request")
