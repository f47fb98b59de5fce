"""The folder of an adapter: its manifest and its digest."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from adapters.artifact import Manifest, artifact_digest, read_manifest, write_manifest
from adapters.errors import InvalidAdapter

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
        ({"schema_version": 2}, "schema_version"),
        ({"surprise": 1}, "surprise"),
        ({"base": {"name": "pocket", "fingerprint": "md5:1"}}, "fingerprint"),
        ({"created": "2026-01-01T00:00:00"}, "created"),
        ({"metrics": {"a": "much"}}, "metrics.a"),
        ({"metrics": {"a": 10**400}}, "metrics.a"),
        ({"name": "x" * 600}, "name"),
    ],
)
def test_a_manifest_that_does_not_fit(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(RECORD | change))
    with pytest.raises(InvalidAdapter, match=says):
        read_manifest(tmp_path)


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
