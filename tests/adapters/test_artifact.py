"""The folder of an adapter: its manifest and its digest."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from adapters.artifact import Manifest, artifact_digest, read_manifest, write_manifest
from adapters.errors import InvalidAdapter, StoreFull

RECORD: dict[str, Any] = {
    "name": "witty",
    "base": {"name": "pocket", "fingerprint": "sha256:" + "0" * 64},
    "method": "bapo",
    "metrics": {"accuracy": 0.9},
    "seed": 1,
}


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    manifest = Manifest.model_validate(RECORD)
    for _ in range(2):  # the second replaces the first
        write_manifest(tmp_path, manifest)
        assert read_manifest(tmp_path) == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_none_is_none(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None


def test_times_are_utc() -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    manifest = Manifest.model_validate(RECORD | {"created": noon})
    assert manifest.created.tzinfo is UTC
    assert manifest.created.hour == 10


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema_version": 4}, "schema_version"),
        ({"surprise": 1}, "surprise"),
        ({"base": {"name": "pocket", "fingerprint": "md5:1"}}, "fingerprint"),
        ({"created": "2026-01-01T00:00:00"}, "created"),
        ({"created": "0001-01-01T00:00:00+14:00"}, "created"),
        ({"metrics": {"a": "much"}}, "metrics.a"),
        ({"metrics": {"a": 10**400}}, "metrics.a"),
        ({"name": "x" * 600}, "name"),
    ],
)
def test_a_manifest_that_does_not_fit(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(RECORD | change))
    with pytest.raises(InvalidAdapter, match=says):
        read_manifest(tmp_path)


def test_a_manifest_of_the_first_schema_is_still_read(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(RECORD | {"schema_version": 1}))
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert (manifest.schema_version, manifest.producer, manifest.base.assumed) == (1, None, False)


def test_a_strangers_keys_are_quoted(tmp_path: Path) -> None:
    """No line breaks, no terminal's escape sequences, and not at any length."""
    metrics = {"\n\x1b[31m" + "x" * 10**5: "much"}
    (tmp_path / "manifest.json").write_text(json.dumps(RECORD | {"metrics": metrics}))
    with pytest.raises(InvalidAdapter) as caught:
        read_manifest(tmp_path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_a_full_disk_is_said(tmp_path: Path, file_limit: Callable[[int], Any]) -> None:
    with file_limit(10), pytest.raises(StoreFull):
        write_manifest(tmp_path, Manifest.model_validate(RECORD))


def test_the_digest_is_of_what_is_served(craft: Callable[..., Path]) -> None:
    plain, told = craft(), craft(fingerprint="sha256:" + "a" * 64)
    assert artifact_digest(plain) == artifact_digest(told)
    assert artifact_digest(plain) != artifact_digest(craft(seed=1))
    assert artifact_digest(plain) != artifact_digest(craft(config={"lora_alpha": 9}))


def test_no_digest_of_half_an_adapter(craft: Callable[..., Path]) -> None:
    folder = craft()
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(InvalidAdapter, match=r"adapter_model\.safetensors is missing"):
        artifact_digest(folder)
