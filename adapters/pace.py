"""Long work on an adapter's bytes goes in small pieces, and between them it may give way.

Owns how such work learns that it shares a machine. It calls `give_way` every few milliseconds;
what that does is up to whoever ordered the work: nothing, unless it was ordered `giving_way`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_rest: ContextVar[Callable[[], None] | None] = ContextVar("rest", default=None)


@contextmanager
def giving_way(rest: Callable[[], None]) -> Iterator[None]:
    """What this block does on this thread calls `rest` between two pieces."""
    before = _rest.set(rest)
    try:
        yield
    finally:
        _rest.reset(before)


def give_way() -> None:
    """Called by long work, after each piece of it."""
    if rest := _rest.get():
        rest()
