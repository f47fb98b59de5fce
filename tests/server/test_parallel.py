"""Two engines side by side: adapters reach both, and nobody gets another's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from served import QUESTION, TASTES
from serving import serving

pytestmark = pytest.mark.timeout(600)

SMALL = {
    "BAPO_MAX_LORAS": "2",
    "BAPO_DTYPE": "float32",
    "BAPO_ADAPTER_TURN_SECONDS": "0.2",
    "BAPO_ADAPTER_MEMORY_MEBIBYTES": "1",
    "BAPO_KV_CACHE_MEBIBYTES": "64",
    "BAPO_CANARY_SECONDS": "1",
}


def test_two_engines(folders: dict[str, Path], tmp_path: Path) -> None:
    flags = ["--vllm.data-parallel-size", "2"]
    with serving(tmp_path, Console(quiet=True), port=0, settings=SMALL, flags=flags) as server:
        for taste, folder in folders.items():
            server.upload(taste, folder)
        key = server.admin_key
        names = ["base", *TASTES]
        alone = {name: server.ask(key, QUESTION, name) for name in names}
        assert len({text for text, _ in alone.values()}) == len(names)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda name: server.ask(key, QUESTION, name), names * 12))
        assert found == [alone[name] for name in names * 12]
        state = server.call("GET", "/admin/engine")
        assert state["restarts"] == 0
        assert not state["quarantined"]
        metrics = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {key}"})
        engines_that_worked = {
            line.partition('engine="')[2].partition('"')[0]
            for line in metrics.text.splitlines()
            if line.startswith("vllm:prompt_tokens_total") and not line.endswith(" 0.0")
        }
        assert engines_that_worked == {"0", "1"}
