"""Holding a folder, so that no thread and no process takes it away meanwhile.

Owns the lock: a shared `flock` on the folder for whoever uses it, the exclusive one for whoever
takes it away. Refuses to know what is in the folder. The kernel drops a lock when its process
dies, so no lease outlives its holder. The folder must be on a disk of this machine.
"""

import fcntl
import os
import threading
import weakref
from contextlib import ExitStack, suppress
from pathlib import Path


class Lease:
    """A folder that nobody takes away before `release`, or before this process ends.

    It costs one file descriptor. A lease that is forgotten is released when it is collected.
    """

    def __init__(self, folder: Path, descriptor: int) -> None:
        self.folder = folder
        self._let_go = weakref.finalize(self, _unlock, descriptor, os.getpid())

    def release(self) -> None:
        """Give the folder up; the second time nothing happens."""
        self._let_go()

    def __enter__(self) -> Path:
        return self.folder

    def __exit__(self, *exception: object) -> None:
        self.release()


def locked(folder: Path, kind: int) -> Lease | None:
    """`folder` with a lock on it, None where it is gone. Raises OSError, also for LOCK_NB."""
    while True:
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return None
        with ExitStack() as undo:
            undo.callback(os.close, descriptor)
            fcntl.flock(descriptor, kind)
            # It may have been renamed away between the two calls; then another may have its name.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), folder.stat()):
                    undo.pop_all()
                    return Lease(folder, descriptor)


def _unlock(descriptor: int, owner: int) -> None:
    # A forked child shares the lock. Ours must end though the child still has its descriptor, and
    # the child's copy of the lease must not end ours.
    if os.getpid() == owner:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


class Turns:
    """A lock for every key, for as long as somebody wants it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: weakref.WeakValueDictionary[str, threading.Lock] = (
            weakref.WeakValueDictionary()
        )

    def of(self, key: str) -> threading.Lock:
        """The lock of `key`; the same one for all who have it at the same time."""
        with self._guard:
            return self._locks.setdefault(key, threading.Lock())
