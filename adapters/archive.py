"""Files as one stream of bytes, and back: plain tar, which every `tar` reads and writes.

Owns the format on the wire, for archives of which neither side ever holds more than a piece.
Refuses to know which files belong in one. What arrives is a stranger's: only regular files with
short names are taken (no links, devices, long names or other extensions, which could claim any
memory), and an archive is whole only when its end has come.
"""

import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from adapters.strictjson import Malformed

BLOCK = tarfile.BLOCKSIZE
PADDING_BLOCKS = 64
"""How many blocks of zeros may follow the end: `tar` fills up to twenty."""

Member = tuple[str, int, Iterable[bytes]]
"""A file's name, its size in bytes, and its content."""


def packed(members: Iterable[Member]) -> Iterator[bytes]:
    """The archive of these files, piece by piece."""
    for name, size, content in members:
        info = tarfile.TarInfo(name)
        info.size = size
        info.mode = 0o600
        yield info.tobuf(tarfile.GNU_FORMAT)
        sent = 0
        for chunk in content:
            sent += len(chunk)
            yield chunk
        if sent != size:
            raise RuntimeError(f"{name} was to have {size} bytes and had {sent}")
        yield bytes(-size % BLOCK)
    yield bytes(2 * BLOCK)


class Unpacker:
    """An archive that arrives in pieces of any length.

    `begin` is told each file's name and size and says where its bytes go; `end` hears when they are
    all there. Whatever these raise, `feed` raises.
    """

    def __init__(self, begin: Callable[[str, int], BinaryIO], end: Callable[[str], None]) -> None:
        self._begin_file = begin
        self._end_file = end
        self._header = bytearray()
        self._name = ""
        self._file: BinaryIO | None = None
        self._left = 0  # bytes of the file that are still to come
        self._skip = 0  # bytes to its next block
        self._zeros = 0  # empty blocks, of which two are the end

    @property
    def complete(self) -> bool:
        """Whether the archive's end has come."""
        return self._zeros >= 2

    def feed(self, data: bytes) -> None:
        """The next piece. Raises Malformed for what is no archive that `packed` could have made."""
        rest = memoryview(data)
        while rest:
            if self._file is not None:
                rest = self._content(self._file, rest)
            elif self._skip:
                passed = min(self._skip, len(rest))
                self._skip -= passed
                rest = rest[passed:]
            else:
                missing = BLOCK - len(self._header)
                self._header += rest[:missing]
                rest = rest[missing:]
                if len(self._header) == BLOCK:
                    self._read_header(bytes(self._header))
                    self._header.clear()

    def close(self) -> None:
        """Let go of a file that has not ended."""
        if self._file is not None:
            self._file.close()

    def _content(self, file: BinaryIO, rest: memoryview) -> memoryview:
        piece = rest[: self._left]
        file.write(piece)
        self._left -= len(piece)
        if not self._left:
            self._finish(file)
        return rest[len(piece) :]

    def _finish(self, file: BinaryIO) -> None:
        file.close()
        self._file = None
        self._end_file(self._name)

    def _read_header(self, block: bytes) -> None:
        if not any(block):
            self._zeros += 1
            if self._zeros > PADDING_BLOCKS:
                raise Malformed("goes on after its end")
            return
        if self._zeros:
            raise Malformed("goes on after its end")
        try:
            info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
        except (tarfile.HeaderError, ValueError):
            raise Malformed("is no tar archive") from None
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.size < 0:
            raise Malformed(f"holds {info.name[:80]!r}, which is no regular file")
        self._name, self._left, self._skip = info.name, info.size, -info.size % BLOCK
        self._file = self._begin_file(info.name, info.size)
        if not self._left:
            self._finish(self._file)
