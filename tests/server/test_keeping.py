"""Keeping an answer never holds it up, whatever the database does, however full the queue is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from fastapi.responses import JSONResponse, StreamingResponse
from sqlalchemy import func, select, text

from adapters.db import AnswerRow, reading, writing
from adapters.errors import AnswerNotFound
from adapters.feedback import AnswerRef
from adapters.registry import Registry, open_registry
from adapters.view import RegistryView
from server import keeping as module
from server.keeping import Keeping
from server.routing import Route

PATH = "/v1/chat/completions"
BODY = json.dumps({"messages": [{"role": "user", "content": "Norway?"}]}).encode()
ARM = Route("base", "salt", "base", "tone/plain")
PLAIN = Route("concise@2", "salt", "concise@2")


class Counted:
    def __init__(self) -> None:
        self.were_kept = self.were_not = 0

    def kept(self, answers: int) -> None:
        self.were_kept += answers

    def not_kept(self, requests: int) -> None:
        self.were_not += requests


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """Ann has agreed, Ben has not."""
    opened = open_registry(tmp_path)
    for user in ("ann", "ben"):
        opened.accounts.create_user(user)
    opened.feedback.set_consent("ann", True)
    yield opened
    opened.close()


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
def keeping(registry: Registry, counted: Counted) -> Keeping:
    return Keeping(registry.feedback, RegistryView(registry), timedelta(days=1), counted)


def asked() -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": BODY, "more_body": False}

    return Request({"type": "http", "method": "POST", "path": PATH, "headers": []}, receive)


def answer(name: str, said: str = "Oslo") -> dict[str, Any]:
    choice = {"index": 0, "message": {"content": said}, "finish_reason": "stop"}
    return {"id": name, "choices": [choice]}


def answered(
    keeping: Keeping, name: str, user: str | None = "ann", route: Route = PLAIN, said: str = "Oslo"
) -> None:
    async def serve() -> None:
        async with AsyncExitStack() as held:
            response = JSONResponse(answer(name, said))
            await keeping.watch(asked(), user, route, response, held)

    asyncio.run(serve())


def names(registry: Registry) -> list[str]:
    with reading(registry.engine) as session:
        return list(session.scalars(select(AnswerRow.completion_id).order_by("completion_id")))


def test_whose_answers_are_kept(keeping: Keeping, registry: Registry, counted: Counted) -> None:
    answered(keeping, "ann-1")
    answered(keeping, "ben-1", "ben")
    answered(keeping, "ben-2", "ben", ARM)
    answered(keeping, "nobody", None)
    answered(keeping, "unknown", "eve")
    keeping.write()
    assert names(registry) == ["ann-1", "ben-2"]
    assert (counted.were_kept, counted.were_not) == (2, 0)
    rated = registry.feedback.rate("ann", AnswerRef("ann-1"), True)
    assert (rated.adapter, rated.version, rated.has_texts) == ("concise", 2, True)
    rated = registry.feedback.rate("ben", AnswerRef("ben-2"), True)
    assert (rated.adapter, rated.version, rated.has_texts) == ("base", None, False)


@pytest.mark.parametrize("leaves", [True, False])
def test_a_stream_is_kept_as_it_was_sent(
    keeping: Keeping, registry: Registry, leaves: bool
) -> None:
    async def pieces() -> AsyncIterator[str]:
        for said, end in (("Os", None), ("lo", "stop")):
            choice = {"index": 0, "delta": {"content": said}, "finish_reason": end}
            yield f"data: {json.dumps({'id': 'c-1', 'choices': [choice]})}\n\n"

    async def serve() -> list[Any]:
        sent = []
        async with AsyncExitStack() as held:
            response = StreamingResponse(pieces())
            await keeping.watch(asked(), "ann", PLAIN, response, held)
            async for piece in response.body_iterator:
                sent.append(piece)
                if leaves:
                    break
        return sent

    async def all_of_it() -> list[Any]:
        return [piece async for piece in pieces()]

    whole = asyncio.run(all_of_it())
    assert asyncio.run(serve()) == whole[: 1 if leaves else 2]
    keeping.write()
    assert registry.feedback.rate("ann", AnswerRef("c-1"), False).has_texts is not leaves


def test_the_database_is_away_for_a_while(
    keeping: Keeping, registry: Registry, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writing(registry.engine) as session:
        session.execute(text("ALTER TABLE answers RENAME TO answers_away"))
    for number in range(3):
        answered(keeping, f"c-{number}")
        keeping.write()  # nothing is raised, nothing is lost
    assert counted.were_not == 0
    monkeypatch.setattr(module, "MOST_BYTES", 4000)
    for number in range(3, 6):  # no more fits
        answered(keeping, f"c-{number}")
    assert counted.were_not == 3
    with writing(registry.engine) as session:
        session.execute(text("ALTER TABLE answers_away RENAME TO answers"))
    keeping.write()
    assert names(registry) == ["c-0", "c-1", "c-2"]
    answered(keeping, "c-6")  # there is room again
    keeping.write()
    assert "c-6" in names(registry)


def test_an_answer_too_long_to_wait_is_counted(
    keeping: Keeping, registry: Registry, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_ANSWER", 1000)
    answered(keeping, "long", said="x" * 2000)
    answered(keeping, "short")
    keeping.write()
    assert names(registry) == ["short"]
    assert counted.were_not == 1


def test_withdrawn_while_it_waits(keeping: Keeping, registry: Registry) -> None:
    answered(keeping, "c-1")
    registry.feedback.set_consent("ann", False)
    keeping.write()
    assert names(registry) == []


def test_what_nobody_answers_stops_nothing(
    keeping: Keeping, registry: Registry, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.__dict__, "transcript_of", _of_no_engine)
    answered(keeping, "odd")
    keeping.write()
    monkeypatch.undo()
    answered(keeping, "c-1")
    keeping.write()
    assert names(registry) == ["c-1"]
    assert counted.were_not == 1


def _of_no_engine(route: str, pieces: Any) -> Any:
    raise KeyError("choices")


def test_it_writes_by_itself(
    keeping: Keeping, registry: Registry, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WRITE_SECONDS", 0.01)
    answered(keeping, "c-1")

    async def live() -> None:
        written, loop = asyncio.Event(), asyncio.get_running_loop()
        monkeypatch.setattr(counted, "kept", lambda n: loop.call_soon_threadsafe(written.set))
        task = asyncio.create_task(keeping.run())
        await written.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(asyncio.wait_for(live(), 30))
    assert names(registry) == ["c-1"]


def test_what_waits_at_the_end_is_written(keeping: Keeping, registry: Registry) -> None:
    answered(keeping, "last")

    async def live() -> None:
        task = asyncio.create_task(keeping.run())
        await asyncio.sleep(0)  # it has begun
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(live())
    assert names(registry) == ["last"]


def test_what_has_expired_is_removed(registry: Registry, counted: Counted) -> None:
    keeping = Keeping(registry.feedback, RegistryView(registry), timedelta(0), counted)
    answered(keeping, "c-1")
    keeping.write()
    with pytest.raises(AnswerNotFound):
        registry.feedback.rate("ann", AnswerRef("c-1"), True)
    keeping._expire()
    with reading(registry.engine) as session:
        assert session.scalar(select(func.count()).select_from(AnswerRow)) == 0
