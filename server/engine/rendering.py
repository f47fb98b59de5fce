"""Short chats become prompts on the event loop, others in vLLM's thread as vLLM has it.

vLLM takes each chat to a thread for the template and once more for the tokens, and through some
tasks between. For some hundred words that is tenths of a millisecond of work, and the ways there
and back cost more than it; what counts more, all requests that came together went through these
stops together, and the first of many reached the engine when the last one was ready, too.
Owns the choice; both ways are vLLM's own, and make the same prompt. Written against vLLM 0.32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

SHORT_BYTES = 4096
"""Of a body: at most a millisecond or two of work."""

_is_short: ContextVar[bool] = ContextVar("prompt_is_short", default=False)


@contextmanager
def prompt_of(body: bytes) -> Iterator[None]:
    """Inside, vLLM makes a prompt of this body."""
    token = _is_short.set(len(body) <= SHORT_BYTES)
    try:
        yield
    finally:
        _is_short.reset(token)


def install(renderer: Any) -> None:
    """Have a renderer of vLLM's choose."""
    in_a_thread = renderer.render_chat_async

    async def render_chat_async(conversations: Any, *args: Any, **kwargs: Any) -> Any:
        if _is_short.get() and all(map(_is_text, conversations)):
            return renderer.render_chat(conversations, *args, **kwargs)
        return await in_a_thread(conversations, *args, **kwargs)

    renderer.render_chat_async = render_chat_async


def _is_text(conversation: Any) -> bool:
    """Whether nothing of it has to be fetched or decoded first."""
    return all(
        isinstance(turn, dict) and isinstance(turn.get("content"), str) for turn in conversation
    )
