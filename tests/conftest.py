"""What the end-to-end tests share: adapters trained once, and one real server on the real engine.

Nothing here stands in for something else: the adapters come from the trainer, the server is
`bapo serve` in its own process with vLLM on the pocket model, and is spoken to over HTTP.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from rich.console import Console

from served import METRICS_KEY, TASTES, Served
from serving import serving

if TYPE_CHECKING:
    from training.model import ResidentBase

ROOT = Path(__file__).resolve().parents[1]
PREFERENCES = ROOT / "examples" / "preferences"

# Fewer slots than adapters, and as little host memory, so that adapters are evicted and read
# again all the time; float32, so that answers can be compared token by token on any CPU.
SMALL = {
    "BAPO_MAX_LORAS": "2",
    "BAPO_ADAPTER_MEMORY_MEBIBYTES": "1",
    "BAPO_DTYPE": "float32",
    "BAPO_ADAPTER_TURN_SECONDS": "0.05",
    "BAPO_METRICS_KEY": METRICS_KEY,
    "BAPO_CLIENT_SECONDS": "8",
    "BAPO_USER_CONCURRENCY": "32",
    "BAPO_MAX_UPLOAD_MEBIBYTES": "16",
}


# Tools that the model may choose need a parser of its way to call them; and left to itself, so
# small a model puts blanks into JSON until its answer is full.
VLLM_FLAGS = [
    *("--vllm.enable-auto-tool-choice", "--vllm.tool-call-parser", "hermes"),
    '--vllm.structured-outputs-config={"backend": "xgrammar", "disable_any_whitespace": true}',
]


@pytest.fixture(scope="session")
def pocket() -> ResidentBase:
    """The pocket model in `transformers`, for training and as the oracle of answers."""
    from adapters.base import POCKET
    from training.model import load_base

    return load_base(POCKET, cpu=True)


@pytest.fixture(scope="session")
def folders(pocket: ResidentBase, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small but really trained adapter for each taste, the same for all test processes."""
    from training.config import BAPOConfig
    from training.run import train_adapter

    work = tmp_path_factory.getbasetemp()
    work = (work.parent if "PYTEST_XDIST_WORKER" in os.environ else work) / "tastes"
    config = BAPOConfig(
        learning_rate=1e-3,
        num_train_epochs=6,
        output_dir=str(work / "trainer"),
        anchor_cache=str(work / "anchors.jsonl"),
        use_cpu=True,
    )
    work.mkdir(exist_ok=True)
    with FileLock(work / "lock"):
        for taste in TASTES:
            if not (work / taste).is_dir():
                train_adapter(pocket, PREFERENCES / f"{taste}.jsonl", work / taste, config)
    return {taste: work / taste for taste in TASTES}


@pytest.fixture(scope="session")
def served(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The server of the session: three adapters, and for each a user who is assigned it."""
    work = tmp_path_factory.mktemp("served")
    with serving(work, Console(quiet=True), port=0, settings=SMALL, flags=VLLM_FLAGS) as server:
        keys = {}
        for taste, folder in folders.items():
            server.upload(taste, folder)
            keys[taste] = server.create_user(f"likes-{taste}", taste)
        yield Served(server, keys, folders, work / "data")
