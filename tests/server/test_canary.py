"""An adapter that spoils the engine for everybody is found out, and only it is shut out.

The rule itself is shown on answers that are made up: no engine rounds at command.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

from adapters.base import POCKET, describe_base
from adapters.registry import AdapterVersion, open_registry
from adapters.validation import Limits
from server.canary import Answer, Canary
from server.errors import AdapterQuarantined, EngineRefusal, EngineUnavailable

from served import QUESTION
from serving import Server, serving

BOUNDLESS = Limits(max_delta_ratio=1e300, max_delta=1e300, max_factor=1e300)
SECONDS = 120


@pytest.fixture
def poisoned(folders: dict[str, Path], tmp_path: Path) -> Iterator[Server]:
    """A server in whose registry an adapter lies that validation would have refused."""
    folder = tmp_path / "poison"
    shutil.copytree(folders["pirate"], folder)
    weights = folder / "adapter_model.safetensors"
    huge = {k: v * 1e30 if "lora_B" in k else v for k, v in load_file(weights).items()}
    save_file(huge, weights, metadata={"format": "pt"})
    registry = open_registry(tmp_path / "data")
    base = describe_base(POCKET)
    registry.publish("good", folders["playful"], base=base, activate=True)
    registry.publish("poison", folder, base=base, activate=True, limits=BOUNDLESS)
    registry.close()
    settings = {"BAPO_CANARY_SECONDS": "1", "BAPO_DTYPE": "float32"}
    with serving(tmp_path, Console(quiet=True), port=0, settings=settings) as server:
        yield server


def ask(server: Server, adapter: str) -> httpx.Response:
    return httpx.post(
        f"{server.url}/v1/chat/completions",
        headers={"Authorization": f"Bearer {server.admin_key}", "X-Adapter-Id": adapter},
        json={"messages": [{"role": "user", "content": QUESTION}], "temperature": 0},
        timeout=120,
    )


def models(server: Server, path: str = "") -> httpx.Response:
    headers = {"Authorization": f"Bearer {server.admin_key}"}
    return httpx.get(f"{server.url}/v1/models{path}", headers=headers, timeout=60)


def words(answer: httpx.Response) -> str:
    return str(answer.json()["choices"][0]["message"]["content"])


def test_the_canary_finds_the_poison_and_everybody_else_is_well_again(poisoned: Server) -> None:
    right = {name: words(ask(poisoned, name)) for name in ("base", "good")}
    time.sleep(2.5)  # the good one is proved by the next song
    ask(poisoned, "poison")
    deadline = time.monotonic() + SECONDS
    while True:
        assert time.monotonic() < deadline
        answer = ask(poisoned, "poison")
        if answer.status_code == httpx.codes.CONFLICT:
            break
        time.sleep(0.5)
    assert answer.json()["error"]["code"] == "adapter_quarantined"
    state = poisoned.call("GET", "/admin/engine")
    assert (state["quarantined"], state["restarts"]) == (["poison@1"], 1)
    assert {name: words(ask(poisoned, name)) for name in right} == right
    assert [model["id"] for model in models(poisoned).json()["data"]] == ["pocket", "good"]
    assert models(poisoned, "/poison").json()["error"]["code"] == "adapter_quarantined"


ANSWER, OTHER = (5, 6, 7, 8), (0, 0, 0, 0)
SURE = (5, 6)
TIPPED = (5, 6, 0, 0)  # it goes another way, but only where the base was not sure
REFUSAL = EngineRefusal("no", status=500)


class Scripted:
    """An engine that gives the answers it is told to, and the last of them for ever."""

    def __init__(self, *answers: Answer | Exception, sound: bool = True) -> None:
        self.answers = list(answers)
        self.sound = sound

    async def base_answers(self, question: str, samples: int = 0) -> list[Answer]:
        if samples:
            return [ANSWER] * (samples - 1) + [(*SURE, 1)]
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(found, Exception):
            raise found
        return [found]

    async def memory_is_sound(self) -> bool:
        return self.sound


def version(engine_id: int) -> AdapterVersion:
    return AdapterVersion(
        "a", engine_id, engine_id, "sha256:0", 4, 1, datetime.now(UTC), "sha256:1"
    )


def canary() -> Canary:
    bird = Canary()
    asyncio.run(bird.greet(Scripted(ANSWER)))
    return bird


def listen(bird: Canary, engine: Scripted, *loaded: int) -> bool:
    return asyncio.run(bird.listen(engine, [version(number) for number in loaded]))


@pytest.mark.parametrize("answers", [[ANSWER], [TIPPED], [OTHER, ANSWER], [REFUSAL, ANSWER]])
def test_a_healthy_engine_stays(answers: list[Any]) -> None:
    bird = canary()
    assert listen(bird, Scripted(*answers), 1, 2)
    assert bird.quarantined == []


@pytest.mark.parametrize(
    "engine", [Scripted(OTHER), Scripted(REFUSAL), Scripted(ANSWER, sound=False)]
)
def test_a_spoilt_one_goes_and_the_newest_that_is_not_proved_with_it(engine: Scripted) -> None:
    bird = canary()
    assert listen(bird, Scripted(ANSWER), 1, 7)
    assert not listen(bird, engine, 1, 7, 3, 2)
    assert bird.quarantined == ["a@3"]
    with pytest.raises(AdapterQuarantined, match="a@3 is in quarantine"):
        bird.refuse_quarantined(version(3))
    bird.refuse_quarantined(version(7))
    # The next engine has proved none of them, and the next in line is the newest again.
    asyncio.run(bird.greet(Scripted(ANSWER)))
    assert not listen(bird, engine, 1, 7)
    assert bird.quarantined == ["a@3", "a@7"]
    assert not listen(bird, engine)


def test_a_dead_engine_is_nobodys_fault() -> None:
    bird = canary()
    with pytest.raises(EngineUnavailable):
        listen(bird, Scripted(EngineUnavailable("gone")), 1)
    assert bird.quarantined == []


def test_an_engine_that_comes_back_as_another_is_not_taken() -> None:
    bird = canary()
    with pytest.raises(RuntimeError, match="as the first one did"):
        asyncio.run(bird.greet(Scripted(OTHER)))


def test_a_base_that_has_never_heard_of_chats_is_served(tmp_path: Path) -> None:
    base = tmp_path / "plain"
    shutil.copytree(POCKET, base)
    (base / "chat_template.jinja").unlink()
    settings = {"BAPO_MODEL": str(base), "BAPO_DTYPE": "float32"}
    with serving(tmp_path, Console(quiet=True), port=0, settings=settings) as server:
        answer = httpx.post(
            f"{server.url}/v1/completions",
            headers={"Authorization": f"Bearer {server.admin_key}"},
            json={"prompt": "Oslo", "max_tokens": 4, "temperature": 0},
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
