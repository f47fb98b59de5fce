"""One version's served files on their way from a server to whoever reads them.

Owns the small archive (the two files that are served, nothing else) and that what has arrived is
the version that was asked for, by its digest. Refuses HTTP, and a whole registry's way
(`carriage.py`). What arrives is a stranger's until its digest says otherwise.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from adapters.archive import Unpacker, packed
from adapters.artifact import SERVED_FILES, artifact_digest
from adapters.carriage import member
from adapters.errors import AdapterError, CorruptArtifact
from adapters.files import disk_errors
from adapters.registry import Registry
from adapters.strictjson import Malformed


def sent_version(registry: Registry, adapter_id: str, version: int) -> Iterator[bytes]:
    """The version's files as an archive.

    The first piece raises AdapterNotFound, StoreError.
    """
    found = registry.resolve(adapter_id, version, is_admin=True)
    with registry.store.lease(found.digest) as place:
        yield from packed(member(name, place / name) for name in SERVED_FILES)


class VersionArrival:
    """A version's archive that arrives piece by piece and is unpacked into the new `folder`."""

    def __init__(self, folder: Path, digest: str) -> None:
        folder.mkdir(parents=True)
        self._folder, self._digest = folder, digest
        self._unpacker = Unpacker(self._begin, lambda name: None)

    def feed(self, piece: bytes) -> None:
        """Raises AdapterError, StoreFull for a piece that cannot be taken."""
        try:
            with disk_errors(self._folder):
                self._unpacker.feed(piece)
        except Malformed as error:
            raise AdapterError(f"These are no files of an adapter: the archive {error}.") from None

    def finish(self) -> None:
        """Raises CorruptArtifact where not all of it came, or something else."""
        self._unpacker.close()
        whole = all((self._folder / name).is_file() for name in SERVED_FILES)
        if not (whole and artifact_digest(self._folder) == self._digest):
            raise CorruptArtifact(
                f"The files of {self._digest[:19]}… did not arrive whole: ask again."
            )

    def _begin(self, name: str, size: int) -> BinaryIO:
        if name not in SERVED_FILES:
            raise Malformed(f"holds the file {name[:80]!r}")
        try:
            return (self._folder / name).open("xb")
        except FileExistsError:
            raise Malformed(f"holds {name} twice") from None
