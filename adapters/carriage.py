"""An export on its way between two machines, as an archive that neither holds as a whole.

Owns sending a registry or an exported folder, and receiving into a folder or a registry. Refuses
HTTP, and what the files mean (`transfer.py`). The head comes last, so what was cut short is known.
What arrives is a stranger's: each adapter is checked before it is stored, and no row is written
before everything is there.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from adapters.archive import Member, Unpacker, packed
from adapters.artifact import CONFIG_FILE, SERVED_FILES
from adapters.db import Base
from adapters.errors import AdapterError, InvalidAdapter, InvalidExport
from adapters.files import disk_errors
from adapters.registry import Registry
from adapters.strictjson import Malformed
from adapters.tables import file_of
from adapters.transfer import (
    BLOBS,
    HEAD,
    LARGEST_HEAD,
    TABLES,
    Transfer,
    blobs_of,
    check_export,
    import_rows,
    keep_blob,
    place_of,
    read_head,
    refuse_used,
    size_of,
    write_rows,
)

ERROR = "error.txt"
"""One sentence in place of the head, where sending has failed in the middle."""
_CHUNK = 2**18
_SMALL = {HEAD, ERROR, CONFIG_FILE}
_TABLES = frozenset(f"{TABLES}/{file_of(table)}" for table in Base.metadata.tables)
_BLOB = re.compile(rf"({BLOBS}/[0-9a-f]{{64}})/({'|'.join(map(re.escape, SERVED_FILES))})")

Check = Callable[[Path], object]
"""Raises InvalidAdapter for a folder of served files that must not get in."""


def sent_registry(registry: Registry) -> Iterator[bytes]:
    """The registry as an archive; its rows are of the moment of the first piece.

    That one raises StoreError; what fails later is told inside the archive.
    """
    with registry.store.scratch() as scratch:
        head, digests = write_rows(registry, scratch / TABLES)
        yield from packed(_members(registry, scratch, head, digests))


def sent_folder(folder: Path) -> Iterator[bytes]:
    """An exported folder as an archive. Raises InvalidExport where it is not whole."""
    check_export(folder)
    files = sorted((folder / TABLES).iterdir())
    files += [place / name for place in blobs_of(folder) for name in SERVED_FILES]
    files += [folder / HEAD]
    yield from packed(member(str(file.relative_to(folder)), file) for file in files)


class Arrival:
    """An archive that arrives piece by piece and is unpacked into `folder`.

    `on_blob` is told of each adapter's folder once its files are there.
    """

    def __init__(self, folder: Path, on_blob: Callable[[Path], None] = lambda place: None) -> None:
        self._folder = folder
        self._on_blob = on_blob
        self._unpacker = Unpacker(self._begin, self._end)

    def feed(self, piece: bytes) -> None:
        """Raises InvalidExport, StoreError and StoreFull for a piece that cannot be taken."""
        try:
            with disk_errors(self._folder):
                self._unpacker.feed(piece)
        except Malformed as error:
            raise InvalidExport(f"This is no export of a registry: it {error}.") from None

    def finish(self) -> None:
        """Raises InvalidExport where the archive is not whole."""
        if not (self._unpacker.complete and (self._folder / HEAD).is_file()):
            raise InvalidExport("The export broke off before its end: export again.")

    def close(self) -> None:
        self._unpacker.close()

    def _begin(self, name: str, size: int) -> BinaryIO:
        if not (name in (HEAD, ERROR) or name in _TABLES or _BLOB.fullmatch(name)):
            raise Malformed(f"holds the file {name[:80]!r}")
        if name.rpartition("/")[2] in _SMALL and size > LARGEST_HEAD:
            raise Malformed(f"holds a {name} of {size} bytes")
        file = self._folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            return file.open("xb")
        except FileExistsError:
            raise Malformed(f"holds {name} twice") from None

    def _end(self, name: str) -> None:
        if name == ERROR:
            sentence = (self._folder / ERROR).read_text(errors="replace")
            raise InvalidExport(f"The server could not go on: {sentence}")
        if blob := _BLOB.fullmatch(name):
            place = self._folder / blob[1]
            if all((place / served).is_file() for served in SERVED_FILES):
                self._on_blob(place)


class Import:
    """A registry being filled from an archive: `feed` all of it, then `commit`."""

    def __init__(self, registry: Registry, scratch: Path, check: Check, actor: str) -> None:
        self._registry, self._scratch, self._actor = registry, scratch, actor
        self._check = check
        self._sizes: list[int] = []
        self.arrival = Arrival(scratch, self._keep)

    def feed(self, piece: bytes) -> None:
        """Raises InvalidExport, StoreError, StoreFull, InvalidAdapter."""
        self.arrival.feed(piece)

    def commit(self) -> Transfer:
        """Everything is there: write the rows. Raises InvalidExport, StoreError, Conflict."""
        self.arrival.finish()
        rows = read_head(self._scratch)
        return import_rows(self._registry, self._scratch, rows, self._sizes, self._actor)

    def _keep(self, place: Path) -> None:
        try:
            self._check(place)
        except InvalidAdapter as error:
            problems = [f"{problem} (in {place.name[:12]}…)" for problem in error.problems]
            raise type(error)(problems) from None
        keep_blob(self._registry, place)
        self._sizes.append(size_of(place))
        shutil.rmtree(place)


@contextmanager
def importing(registry: Registry, check: Check, actor: str) -> Iterator[Import]:
    """Fill an empty registry; without `commit` no row of it changes. Raises Conflict, StoreError.

    What was stored until then no version names, so that the next collection takes it.
    """
    refuse_used(registry)
    with registry.store.scratch() as scratch:
        under_way = Import(registry, scratch, check, actor)
        try:
            yield under_way
        finally:
            under_way.arrival.close()


def _members(
    registry: Registry, scratch: Path, head: bytes, digests: list[str]
) -> Iterator[Member]:
    try:
        for file in sorted((scratch / TABLES).iterdir()):
            yield member(f"{TABLES}/{file.name}", file)
        for digest in digests:
            with registry.store.lease(digest) as place:
                for name in SERVED_FILES:
                    yield member(str(place_of(Path(), digest) / name), place / name)
    except AdapterError as error:
        sentence = str(error).encode()
        yield ERROR, len(sentence), [sentence]
    else:
        yield HEAD, len(head), [head]


def member(name: str, file: Path) -> Member:
    """A file on the disk, for an archive."""
    return name, file.stat().st_size, _content(file)


def _content(file: Path) -> Iterator[bytes]:
    with file.open("rb") as source:
        while chunk := source.read(_CHUNK):
            yield chunk
