"""What the documentation says of the tests: every test that a page names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAMED = re.compile(r"`(?:tests/[\w/]*)?(test_\w+\.py)(?:::(test_\w+))?`")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_test_that_a_page_names_is_there(page: Path) -> None:
    texts: dict[str, str] = {}
    for file in (ROOT / "tests").rglob("test_*.py"):  # one name may stand in two rooms
        texts[file.name] = texts.get(file.name, "") + file.read_text(encoding="utf-8")
    for file_name, test in NAMED.findall(page.read_text(encoding="utf-8")):
        assert file_name in texts, file_name
        assert not test or f"def {test}(" in texts[file_name], f"{file_name}::{test}"
