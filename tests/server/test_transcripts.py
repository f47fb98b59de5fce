"""Texts are read from what really is sent, and only where something can be learned from them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.transcripts import prompt_of, transcript_of

CHAT, TEXT, MESSAGES, RESPONSES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/v1/responses",
)


def events(*documents: dict[str, Any]) -> list[str]:
    return [f"event: x\ndata: {json.dumps(document)}\n\n" for document in documents]


def delta(index: int = 0, text: str | None = None, end: str | None = None) -> dict[str, Any]:
    choice = {"index": index, "delta": {"content": text}, "finish_reason": end}
    return {"id": "chatcmpl-1", "choices": [choice]}


def read(route: str, pieces: list[Any]) -> tuple[str | None, dict[int, str | None]]:
    found = transcript_of(route, pieces)
    return found.completion_id, {index: said.text for index, said in found.choices.items()}


def test_a_stream_of_two_choices_of_which_one_was_cut() -> None:
    pieces = [
        ": ping\n\n",
        *events(delta(0, "Os"), delta(1, "Ber"), delta(0, "lo", "stop"), delta(1, "gen", "length")),
        *events({"id": "chatcmpl-1", "choices": [], "usage": {}}),
        b"data: [DONE]\n\n",
    ]
    assert read(CHAT, pieces) == ("chatcmpl-1", {0: "Oslo", 1: None})
    assert read(CHAT, pieces[:3]) == ("chatcmpl-1", {0: None, 1: None})  # the client left
    assert read(CHAT, [pieces[1][:30]]) == (None, {})
    assert read(CHAT, events({"error": {"message": "the engine has stopped"}})) == (None, {})


def test_several_events_in_one_piece_and_one_in_several() -> None:
    whole = "".join(events(delta(0, "Os"), delta(0, "lo", "stop")))
    assert read(CHAT, [whole]) == ("chatcmpl-1", {0: "Oslo"})
    assert read(CHAT, [whole[:40], whole[40:].encode()]) == ("chatcmpl-1", {0: "Oslo"})


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "data: {} is\n\ndata: [DONE]"}, "data: {} is\n\ndata: [DONE]"),
        ({"content": None}, None),
        ({"content": " \n"}, None),
        ({"content": "a\0b"}, None),
        ({"content": "half \ud800"}, None),
        ({"content": "x" * 200_000}, None),
        ({"content": "Oslo", "tool_calls": [{"id": "1"}]}, None),
    ],
)
def test_whole_answers(message: dict[str, Any], text: str | None) -> None:
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = json.dumps({"id": "chatcmpl-1", "choices": [choice]}).encode()
    assert read(CHAT, [body]) == ("chatcmpl-1", {0: text})


def test_raw_completions_have_choices_and_no_texts() -> None:
    choices = [{"index": n, "text": "Oslo", "finish_reason": "stop"} for n in range(2)]
    whole = json.dumps({"id": "cmpl-1", "choices": choices}).encode()
    assert read(TEXT, [whole]) == ("cmpl-1", {0: None, 1: None})
    assert prompt_of(TEXT, b'{"prompt": "Norway?"}') is None


@pytest.mark.parametrize(("reason", "text"), [("end_turn", "Oslo"), ("max_tokens", None)])
def test_anthropics_shape(reason: str, text: str | None) -> None:
    block = {"type": "text", "text": "Oslo"}
    whole = {"type": "message", "id": "m-1", "content": [block], "stop_reason": reason}
    assert read(MESSAGES, [json.dumps(whole).encode()]) == ("m-1", {0: text})
    stream = events(
        {"type": "message_start", "message": {"id": "m-1", "content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Os"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "lo"}},
        {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {}},
        {"type": "message_stop"},
    )
    assert read(MESSAGES, stream) == ("m-1", {0: text})
    tool = {"type": "content_block_start", "content_block": {"type": "tool_use", "id": "t"}}
    assert read(MESSAGES, [*stream[:2], *events(tool), *stream[2:]]) == ("m-1", {0: None})


def test_responses_shape() -> None:
    message = {"type": "message", "content": [{"type": "output_text", "text": "Oslo"}]}
    whole = {"object": "response", "id": "r-1", "status": "completed", "output": [message]}
    assert read(RESPONSES, [json.dumps(whole).encode()]) == ("r-1", {0: "Oslo"})
    begun = {"object": "response", "id": "r-1", "status": "in_progress", "output": []}
    stream = events(
        {"type": "response.created", "response": begun},
        {"type": "response.output_text.delta", "delta": "Oslo"},
        {"type": "response.completed", "response": whole},
    )
    assert read(RESPONSES, stream) == ("r-1", {0: "Oslo"})
    assert read(RESPONSES, stream[:2]) == ("r-1", {0: None})
    call = {**whole, "output": [message, {"type": "function_call"}]}
    assert read(RESPONSES, [json.dumps(call).encode()]) == ("r-1", {0: None})


ASKED = {"role": "user", "content": "Norway?"}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("route", "body", "prompt"),
    [
        (CHAT, {"messages": [SYSTEM, ASKED]}, [SYSTEM, ASKED]),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Norway?"}]}]},
            [ASKED],
        ),
        (CHAT, {"messages": [ASKED], "tools": [{"type": "function"}]}, None),
        (CHAT, {"messages": [ASKED, {"role": "assistant", "content": "Os"}]}, None),
        (CHAT, {"messages": [ASKED, {"role": "tool", "content": "x"}, ASKED]}, None),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            None,
        ),
        (CHAT, {"messages": "Norway?"}, None),
        (CHAT, {"messages": [7]}, None),
        (CHAT, [], None),
        (MESSAGES, {"system": "Be brief.", "messages": [ASKED]}, [SYSTEM, ASKED]),
        (MESSAGES, {"messages": [ASKED]}, [ASKED]),
        (RESPONSES, {"input": "Norway?", "instructions": "Be brief."}, [SYSTEM, ASKED]),
        (RESPONSES, {"input": [ASKED]}, [ASKED]),
    ],
)
def test_prompts(route: str, body: Any, prompt: Any) -> None:
    assert prompt_of(route, json.dumps(body).encode()) == prompt
