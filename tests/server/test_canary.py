"""An adapter that spoils the engine for everybody is found out, and only it is shut out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

from adapters.base import POCKET, describe_base
from adapters.registry import open_registry
from adapters.validation import Limits

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
