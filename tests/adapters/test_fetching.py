"""A version's files on their way: whole and the right ones, or not at all."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.artifact import SERVED_FILES, artifact_digest
from adapters.errors import AdapterError, AdapterNotFound, CorruptArtifact
from adapters.fetching import VersionArrival, sent_version
from adapters.registry import AdapterVersion, Registry

Publish = Callable[..., AdapterVersion]


def receive(pieces: list[bytes], folder: Path, digest: str) -> None:
    arrival = VersionArrival(folder, digest)
    for piece in pieces:
        arrival.feed(piece)
    arrival.finish()


def test_what_arrives_is_what_is_stored(
    registry: Registry, publish: Publish, tmp_path: Path
) -> None:
    made = publish("a")
    archive = b"".join(sent_version(registry, "a", 1))
    bytewise = [archive[k : k + 1] for k in range(2000)] + [archive[2000:]]
    receive(bytewise, tmp_path / "there", made.digest)
    assert artifact_digest(tmp_path / "there") == made.digest
    assert sorted(file.name for file in (tmp_path / "there").iterdir()) == sorted(SERVED_FILES)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert tuple(tar.getnames()) == SERVED_FILES


def test_half_of_it_or_another_is_refused(
    registry: Registry, publish: Publish, tmp_path: Path
) -> None:
    made = publish("a")
    archive = b"".join(sent_version(registry, "a", 1))
    with pytest.raises(CorruptArtifact, match="did not arrive whole"):
        receive([archive[: len(archive) // 2]], tmp_path / "half", made.digest)
    with pytest.raises(CorruptArtifact, match="did not arrive whole"):
        receive([archive], tmp_path / "another", "sha256:" + "0" * 64)
    for version in (2, 0, 10**30):
        with pytest.raises(AdapterNotFound):
            next(sent_version(registry, "a", version))
    registry.retire("a")
    with pytest.raises(AdapterNotFound):
        next(sent_version(registry, "a", 1))


@pytest.mark.parametrize(
    ("names", "says"),
    [(["../x"], "the file '../x'"), (SERVED_FILES[:1] * 2, "twice"), (None, "no tar archive")],
)
def test_a_hostile_archive_writes_nothing_else(
    names: list[str] | None, says: str, tmp_path: Path
) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name in names or ():
            tar.addfile(tarfile.TarInfo(name))
    content = archive.getvalue() if names else b"<html>" * 100
    with pytest.raises(AdapterError, match=says):
        receive([content], tmp_path / "in", "sha256:" + "0" * 64)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
