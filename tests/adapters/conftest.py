"""What the tests of this room share: a small base, and folders of adapters made byte by byte."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from adapters.artifact import Manifest, write_manifest
from adapters.base import BaseModelInfo
from adapters.db import connect
from adapters.migrate import upgrade
from adapters.registry import AdapterVersion, Registry, open_registry
from adapters.tensorfile import encode_bf16, header_bytes

from postgres import Postgres, postgres

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"
RANK = 4
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def base() -> BaseModelInfo:
    """Two layers of a model that exists only as a description."""
    return BaseModelInfo(
        name="tiny",
        fingerprint="sha256:" + "a" * 64,
        modules={Q: (12, 8), DOWN: (8, 16)},
        norms={Q: 2.0, DOWN: 2.0},
    )


@pytest.fixture
def craft(tmp_path: Path, base: BaseModelInfo) -> Callable[..., Path]:
    """Writes adapter folders for `base`: good ones, but for what a test asks to be otherwise.

    `config` is laid over adapter_config.json and `tensors` over the tensors, where None takes
    away. `weights` and `config_text` replace the file's bytes, `fingerprint` makes a manifest.
    """
    made = iter(range(10**6))

    def build(
        *,
        config: Mapping[str, Any] | None = None,
        tensors: Mapping[str, npt.NDArray[np.float32] | None] | None = None,
        weights: bytes | None = None,
        config_text: bytes | None = None,
        fingerprint: str | None = None,
        dtype: str = "F32",
        seed: int = 0,
    ) -> Path:
        folder = tmp_path / f"adapter-{next(made)}"
        folder.mkdir()
        said = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": ["q_proj"]}
        laid = {k: v for k, v in (said | dict(config or {})).items() if v is not ...}
        text = json.dumps(laid).encode() if config_text is None else config_text
        (folder / "adapter_config.json").write_bytes(text)
        numbers = good_tensors(base, seed) | dict(tensors or {})
        kept = {name: values for name, values in numbers.items() if values is not None}
        content = file_of(kept, dtype) if weights is None else weights
        (folder / "adapter_model.safetensors").write_bytes(content)
        if fingerprint:
            reference = {"name": base.name, "fingerprint": fingerprint}
            record = {"name": "a", "base": reference, "method": "bapo", "seed": 1}
            write_manifest(folder, Manifest.model_validate(record))
        return folder

    return build


def good_tensors(base: BaseModelInfo, seed: int) -> dict[str, npt.NDArray[np.float32]]:
    """A and B of every layer, of the size that training gives them."""
    draw = np.random.default_rng(seed)
    found = {}
    for module, (outputs, inputs) in base.modules.items():
        for side, shape in (("A", (RANK, inputs)), ("B", (outputs, RANK))):
            values = draw.normal(0, 0.1, shape).astype(np.float32)
            found[f"base_model.model.{module}.lora_{side}.weight"] = values
    return found


def file_of(tensors: Mapping[str, npt.NDArray[np.float32]], dtype: str = "F32") -> bytes:
    """A safetensors file of these tensors."""
    data = b"".join(encoded(values, dtype) for values in tensors.values())
    return header_bytes({name: (dtype, v.shape) for name, v in tensors.items()}) + data


def encoded(values: npt.NDArray[np.float32], dtype: str) -> bytes:
    if dtype == "BF16":
        return encode_bf16(values)
    return values.astype("<f4" if dtype == "F32" else "<f2").tobytes()


@pytest.fixture
def file_limit() -> Callable[[int], AbstractContextManager[None]]:
    """No file of this process grows beyond so many bytes: how a full disk looks from inside."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """A real PostgreSQL server, one for the session; whoever stops it starts it again."""
    with postgres() as server:
        yield server


@pytest.fixture(scope="session")
def migrated(postgres_server: Postgres) -> str:
    """The name of a PostgreSQL database with our empty tables, for copying."""
    url = postgres_server.create_database()
    engine = connect(url)
    upgrade(engine, lock=Path(os.devnull))
    engine.dispose()
    return url.rpartition("/")[2]


@pytest.fixture
def postgres_url(postgres_server: Postgres, migrated: str) -> Iterator[str]:
    """The URL of a PostgreSQL database of the test's own, with our empty tables."""
    url = postgres_server.create_database(migrated)
    yield url
    postgres_server.drop_database(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str | None:
    """An empty database; None is the one in the data folder."""
    if request.param == "sqlite":
        return None
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def registry(tmp_path: Path, database_url: str | None) -> Iterator[Registry]:
    """An empty registry in `tmp_path / "data"`, on each kind of database."""
    opened = open_registry(tmp_path / "data", database_url)
    yield opened
    opened.close()


Publish = Callable[..., AdapterVersion]


@pytest.fixture
def publish(registry: Registry, craft: Callable[..., Path], base: BaseModelInfo) -> Publish:
    """Publishes an adapter of its own content, or that of `seed`."""
    seeds = iter(range(100, 200))

    def one(name: str = "concise", seed: int | None = None, **options: Any) -> AdapterVersion:
        folder = craft(seed=next(seeds) if seed is None else seed)
        return registry.publish(name, folder, base=base, **options)

    return one


Child = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def child() -> Iterator[Child]:
    """Runs code in a Python process of its own, spoken to by pipes; none outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        with suppress(BrokenPipeError):
            process.__exit__(None, None, None)
