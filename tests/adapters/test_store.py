"""Content is kept whole, once, for good, or not at all."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters.artifact import artifact_digest
from adapters.errors import CorruptArtifact, StoreError, StoreFull
from adapters.store import LocalStore

Craft = Callable[..., Path]


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def everything(tmp_path: Path) -> set[str]:
    root = tmp_path / "store"
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_what_is_put_is_there(store: LocalStore, craft: Craft) -> None:
    folder = craft(fingerprint="sha256:" + "a" * 64)
    digest = store.put(folder)
    assert digest == artifact_digest(folder) == artifact_digest(store.path(digest))
    store.verify(digest)
    assert len(list(store.path(digest).iterdir())) == 2  # the manifest is the registry's


def test_equal_content_is_kept_once(store: LocalStore, craft: Craft, tmp_path: Path) -> None:
    digest = store.put(craft())
    before = store.path(digest).stat()
    assert store.put(craft()) == digest
    assert store.path(digest).stat().st_ino == before.st_ino
    assert len(everything(tmp_path)) == 2


@pytest.mark.parametrize("size", [10, 200])
def test_a_full_disk_leaves_nothing(
    store: LocalStore, craft: Craft, tmp_path: Path, file_limit: Callable[[int], Any], size: int
) -> None:
    """Full in the first file or in the second."""
    folder = craft()
    with file_limit(size), pytest.raises(StoreFull, match="free some"):
        store.put(folder)
    assert everything(tmp_path) == set()
    store.put(folder)


def test_damage_is_found_and_mended_by_another_upload(store: LocalStore, craft: Craft) -> None:
    digest = store.put(craft())
    weights = store.path(digest) / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CorruptArtifact, match="upload it again"):
        store.verify(digest)
    assert store.put(craft()) == digest
    store.verify(digest)


def test_a_lost_file_is_damage_too(store: LocalStore, craft: Craft) -> None:
    digest = store.put(craft())
    (store.path(digest) / "adapter_config.json").unlink()
    with pytest.raises(CorruptArtifact):
        store.verify(digest)
    store.put(craft())
    store.verify(digest)


def test_what_is_not_there(store: LocalStore) -> None:
    with pytest.raises(CorruptArtifact, match="missing"):
        store.path("sha256:" + "0" * 64)


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:../../etc", "md5:" + "0" * 64])
def test_a_digest_is_no_path(store: LocalStore, digest: str) -> None:
    with pytest.raises(StoreError, match="no digest"):
        store.path(digest)


def test_only_old_drafts_are_cleaned(store: LocalStore, tmp_path: Path) -> None:
    drafts = tmp_path / "store" / "drafts"
    for name in ("old", "young"):
        (drafts / name).mkdir()
        (drafts / name / "half").write_bytes(b"half")
    yesterday = time.time() - 86_400
    os.utime(drafts / "old", (yesterday, yesterday))
    LocalStore(tmp_path / "store")
    assert [path.name for path in drafts.iterdir()] == ["young"]


def test_scratch_is_gone_afterwards(store: LocalStore, tmp_path: Path) -> None:
    def fail() -> None:
        with store.scratch() as folder:
            (folder / "work").write_bytes(b"work")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert everything(tmp_path) == set()
