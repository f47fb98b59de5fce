"""Short chats become prompts at once, others in vLLM's thread; the prompt is the same."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from server.engine.rendering import SHORT_BYTES, install, prompt_of

from served import Served, chat

TEXT = [{"role": "user", "content": "Norway?"}]
PICTURE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x"}}]}]
SHORT, LONG = bytes(SHORT_BYTES), bytes(SHORT_BYTES + 1)


class Renderer:
    """vLLM's two ways, which say which of them was taken."""

    def render_chat(self, conversations: Any, params: Any) -> str:
        return "at once"

    async def render_chat_async(self, conversations: Any, params: Any) -> str:
        return "in a thread"


@pytest.mark.parametrize(
    ("turns", "body", "way"),
    [
        (TEXT, SHORT, "at once"),
        (TEXT, LONG, "in a thread"),
        (PICTURE, SHORT, "in a thread"),  # it has to be fetched
        (TEXT, None, "in a thread"),  # nobody's request
    ],
)
def test_which_way(turns: Any, body: bytes | None, way: str) -> None:
    async def scene() -> str:
        renderer = Renderer()
        install(renderer)
        if body is None:
            return await renderer.render_chat_async([turns], None)
        with prompt_of(body):
            return await renderer.render_chat_async([turns], None)

    assert asyncio.run(scene()) == way


def test_both_ways_make_the_same_prompt(served: Served) -> None:
    """The same question with and without a long field that makes no part of the prompt."""
    answers = [
        chat(served, served.keys["pirate"], logprobs=True, **more).json()
        for more in ({}, {"metadata": {"padding": "x" * SHORT_BYTES}})
    ]
    one, other = ((found["choices"], found["usage"]) for found in answers)
    assert one == other
