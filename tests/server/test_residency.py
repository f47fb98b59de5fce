"""More adapters than slots and memory: everybody's turn comes, and nothing is lost or left."""

from __future__ import annotations

import shutil
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from served import QUESTION, TASTES, Served, chat

LONG = {"ignore_eos": True, "max_tokens": 120}


def engine_state(served: Served) -> dict[str, Any]:
    found: dict[str, Any] = served.server.call("GET", "/admin/engine")
    return found


def comes_true(condition: Any, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture
def publish(served: Served) -> Iterator[Any]:
    """Publishes a taste's adapter under a name of the test's own, which is retired afterwards."""
    made: list[str] = []

    def one(name: str, taste: str) -> str:
        served.server.upload(name, served.folders[taste])
        made.append(name)
        return name

    yield one
    for name in made:
        headers = {"Authorization": f"Bearer {served.server.admin_key}"}
        httpx.delete(f"{served.server.url}/admin/adapters/{name}", headers=headers)


def stream(served: Served, adapter: str) -> Iterator[str]:
    """The lines of a long streamed answer of `adapter`, as they come."""
    with httpx.stream(
        "POST",
        f"{served.server.url}/v1/chat/completions",
        headers={
            "Authorization": f"Bearer {served.server.admin_key}",
            "X-Adapter-Id": adapter,
        },
        json={
            "messages": [{"role": "user", "content": QUESTION}],
            "temperature": 1,
            "n": 32,  # so many at once take their time
            "stream": True,
            **LONG,
        },
        timeout=60,
    ) as answer:
        assert answer.status_code == 200
        yield from (line for line in answer.iter_lines() if line.startswith("data: "))


def test_memory_is_bounded_and_everything_is_given_back(served: Served) -> None:
    with ThreadPoolExecutor(6) as callers:  # two at a time have their turn, which is too much
        for answer in callers.map(lambda taste: chat(served, served.keys[taste]), TASTES * 4):
            assert answer.status_code == 200
    assert engine_state(served)["memory"]["bytes"] <= engine_state(served)["memory"]["limit"]
    for _ in range(3):
        for taste in TASTES:
            assert chat(served, served.keys[taste]).headers["X-Adapter-Id"] == f"{taste}@1"
    state = engine_state(served)
    assert state["slots"] == {"total": 2, "running": 0, "waiting": 0}
    assert 0 < state["memory"]["bytes"] <= state["memory"]["limit"]
    # One megabyte holds one of these in float32: the others were evicted, inside the engine, too.
    assert state["resident"] == [f"{TASTES[-1]}@1"]
    assert comes_true(lambda: engine_state(served)["in_host_memory"] == 1)


def test_three_adapters_on_two_slots_all_progress(served: Served) -> None:
    """vLLM alone let the third one wait until the load ended.

    A wait is long when it is so in seconds and in the answers that others got meanwhile: a machine
    that stands still makes long seconds for everybody, one that hurries many answers in a turn.
    """
    answers: list[str] = []  # whose, as they came; each append is one step of the interpreter
    waits: list[tuple[float, int]] = []  # seconds, and others' answers meanwhile
    end = time.monotonic() + 8

    def caller(taste: str, tokens: int, client: httpx.Client) -> None:
        ask = {
            "messages": [{"role": "user", "content": QUESTION}],
            "ignore_eos": True,
            "max_tokens": tokens,
        }
        key = {"Authorization": f"Bearer {served.keys[taste]}"}
        while (began := time.monotonic()) < end:
            before = len(answers)
            answer = client.post("/v1/chat/completions", json=ask, headers=key)
            assert answer.headers["X-Adapter-Id"] == f"{taste}@1", answer.text
            waits.append((time.monotonic() - began, len(answers) - before))
            answers.append(taste)

    # Answers of different length end one by one, so that an adapter that runs need never pause; and
    # a connection that stays, since making a client takes longer than an answer.
    with (
        httpx.Client(base_url=served.server.url, timeout=120) as client,
        ThreadPoolExecutor(9) as callers,
    ):
        for done in [
            callers.submit(caller, taste, n, client) for taste in TASTES for n in (26, 32, 38)
        ]:
            done.result()
    counts = Counter(answers)
    assert min(counts[taste] for taste in TASTES) > 0.5 * max(counts.values()), counts
    seconds, overtaken = (statistics.median(column) for column in zip(*waits, strict=True))
    longest = max(min(wait / seconds, others / overtaken) for wait, others in waits)
    assert longest < 3, sorted(waits)
    assert engine_state(served)["slots"]["running"] == 0


def test_an_adapter_retired_in_the_middle_of_an_answer_finishes_it(
    served: Served, publish: Any
) -> None:
    name = publish("leaving", "pirate")
    lines = stream(served, name)
    assert next(lines)
    served.server.call("DELETE", f"/admin/adapters/{name}")
    assert f"{name}@1" not in engine_state(served)["resident"]
    rest = list(lines)
    assert rest[-1] == "data: [DONE]"
    assert len(rest) > 100
    headers = {"X-Adapter-Id": name}
    assert chat(served, served.server.admin_key, headers=headers).status_code == 404
    assert comes_true(lambda: engine_state(served)["in_host_memory"] <= 1)


def test_a_client_that_leaves_gives_its_turn_back(served: Served, publish: Any) -> None:
    lines = stream(served, publish("left-alone", "playful"))
    assert next(lines)
    assert engine_state(served)["slots"]["running"] == 1
    lines.close()  # type: ignore[attr-defined]
    assert comes_true(lambda: engine_state(served)["slots"]["running"] == 0)


def test_files_that_vanish_hurt_nobody_who_is_loaded_and_no_one_else(
    served: Served, publish: Any, tmp_path: Path
) -> None:
    """vLLM alone died of it, with everybody's requests, once the adapter was evicted."""
    name = publish("vanishing", "formal")
    headers = {"X-Adapter-Id": name}
    key = served.server.admin_key
    own = chat(served, key, headers=headers).json()["choices"][0]["message"]["content"]
    digest = served.server.call("GET", f"/admin/adapters/{name}")["versions"][0]["digest"]
    (blob,) = served.data_dir.rglob(f"*{digest.removeprefix('sha256:')}*")
    shutil.move(blob, tmp_path / "taken")
    try:
        answer = chat(served, key, headers=headers)
        assert answer.json()["choices"][0]["message"]["content"] == own
        for taste in ("pirate", "playful"):  # now it is evicted
            assert chat(served, served.keys[taste]).status_code == 200
        gone = chat(served, key, headers=headers)
        assert (gone.status_code, gone.json()["error"]["code"]) == (503, "corrupt_artifact")
        assert chat(served, served.keys["pirate"]).status_code == 200
    finally:
        shutil.move(tmp_path / "taken", blob)
    assert chat(served, key, headers=headers).status_code == 200
    assert engine_state(served)["slots"]["running"] == 0
