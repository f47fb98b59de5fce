"""Files as this room needs them: opened without surprises, written so that they stay.

Owns opening a stranger's file (never through a link, never a pipe or device) and making
written bytes durable. Refuses layouts and formats. A file opened here is a regular one of
known size, and what `write_durably` returned from survives a power cut.
"""

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from adapters.errors import StoreError, StoreFull
from adapters.strictjson import Malformed

_REASONS = {
    errno.ENOENT: "is missing",
    errno.ELOOP: "is a symbolic link; upload the file itself",
    errno.EACCES: "cannot be read (permission denied)",
}


def open_regular(path: Path) -> tuple[BinaryIO, int]:
    """Open an untrusted file for reading; returns it with its size in bytes.

    Raises Malformed for links, pipes, devices, folders and whatever cannot be opened.
    O_NONBLOCK keeps a silent pipe from holding us until it speaks.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Malformed(_REASONS.get(error.errno or 0, "is not a regular file")) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise Malformed("is not a regular file")
    return os.fdopen(descriptor, "rb"), status.st_size


def read_regular(path: Path, *, max_bytes: int) -> bytes:
    """All bytes of a small untrusted file. Raises Malformed when it is not small."""
    file, size = open_regular(path)
    with file:
        if size > max_bytes:
            raise Malformed(f"is {size} bytes long, more than the {max_bytes} allowed")
        return file.read(max_bytes + 1)


def write_durably(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a new file and bring it to the disk. Raises StoreFull, StoreError."""
    try:
        with path.open("xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise as_store_error(error, path) from error


def sync_file(path: Path) -> None:
    """Bring what was written into a file to the disk, whoever wrote it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Bring a folder's entries (names, renames) to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What fails on the disk in this block is told as StoreFull or StoreError, about `path`."""
    try:
        yield
    except OSError as error:
        raise as_store_error(error, path) from error


def as_store_error(error: OSError, path: Path) -> StoreError:
    """The domain's word for a failure of the disk under `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreFull(f"No space is left for {path.name}: free some disk space and try again.")
    return StoreError(f"{path.name} cannot be written or read: {error.strerror or error}.")
