"""The house rules: arrows that point one way, and rooms that know their place."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {
    "adapters": {"server", "training", "torch", "vllm", "fastapi", "transformers", "peft"},
    "training": {"server", "fastapi"},
    "server": {"training"},
}


def imported(file: Path) -> set[str]:
    """Top-level names that a file imports anywhere, functions included."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


def files_of(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room: str) -> None:
    wrong = {
        str(file.relative_to(ROOT)): sorted(imported(file) & ROOMS[room])
        for file in files_of(room)
        if imported(file) & ROOMS[room]
    }
    assert wrong == {}


def test_only_these_know_vllm() -> None:
    files = [f for room in ROOMS for f in files_of(room)]
    assert {str(f.relative_to(ROOT)) for f in files if "vllm" in imported(f)} == {
        "server/engine/vllm.py",
        "server/engine/options.py",
        "server/engine/requests.py",
        "server/engine/cpu_lora.py",
        "server/engine/cpu_punica.py",
        "server/engine/sequences.py",
        "server/engine/worker.py",
        "training/vllm_generation.py",
    }


@pytest.mark.parametrize("room", ["adapters", "server", "training"])
def test_the_rooms_are_ours(room: str) -> None:
    """Another package on PyPI also imports as `adapters`; decision 0001 says why we keep it."""
    spec = importlib.util.find_spec(room)
    assert spec is not None
    assert spec.origin == str(ROOT / room / "__init__.py")


@pytest.mark.parametrize("file", [f for room in ROOMS for f in files_of(room)], ids=str)
def test_a_module_opens_by_saying_what_it_owns(file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    assert not source.strip() or ast.get_docstring(ast.parse(source))


def test_every_domain_error_has_a_meaning_in_http() -> None:
    from adapters import errors as domain
    from server.errors import MEANINGS

    def tree(kind: type[Exception]) -> set[type[Exception]]:
        return {kind}.union(*(tree(child) for child in kind.__subclasses__()))

    assert tree(domain.AdapterError) == set(MEANINGS)


def test_nothing_names_a_machine() -> None:
    """No absolute path of one machine in what is committed."""
    homes = ("/" + "root/", "/" + "home/", "/" + "work/")
    found = [
        f"{file.relative_to(ROOT)}: {word}"
        for room in (*ROOMS, "examples", "models", "benchmarks", "docs", "configs", "requirements")
        for file in sorted((ROOT / room).rglob("*"))
        if file.suffix in {".py", ".md", ".txt", ".in", ".sh", ".yaml", ".json"}
        for word in homes
        if word in file.read_text(encoding="utf-8")
    ]
    assert found == []
