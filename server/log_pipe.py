"""The log never stops the server: its reader may be slow, or gone.

Owns how this process writes to its standard output and error. A full pipe would stop whoever
writes to it, which is the event loop with everybody's answers in it, and a pipe without a reader
raises. So a pipe is written to without waiting, by this process and by those it starts, and a line
that has no room is lost; the log says how many were. Refuses what a line says, and terminals and
files, which are written to as always (a full disk loses lines, too).
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import stat
import sys

ROOM = 2**20
"""Bytes that a reader may be behind; as much as Linux gives to anybody."""


def never_wait() -> None:
    """Have standard output and error drop what their reader is too slow for, where Linux can.

    A description of our own: a flag on the one that we were given would be its other owners', too.
    """
    atexit.register(let_go)
    for number in (1, 2):
        with contextlib.suppress(OSError):  # closed, or not ours to open: it stays as it is
            if not stat.S_ISFIFO(os.fstat(number).st_mode):
                continue
            ours = os.open(f"/proc/self/fd/{number}", os.O_WRONLY | os.O_NONBLOCK)
            os.dup2(ours, number)
            os.close(ours)
            if fcntl.fcntl(number, fcntl.F_GETPIPE_SZ) < ROOM:
                fcntl.fcntl(number, fcntl.F_SETPIPE_SZ, ROOM)


def say(sentence: str) -> None:
    """For a person at the start, on standard error; a reader that is gone is no reason to end."""
    with contextlib.suppress(OSError):
        print(sentence, file=sys.stderr, flush=True)


def let_go() -> None:
    """At the process' end: what was never read must not turn its exit status into 120."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())


class Lines:
    """A file, by its descriptor, of whole lines: it takes those that there is room for.

    Not for several threads at once; structlog's loggers have a lock.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._lost = 0
        self._torn = b""

    def write(self, line: str) -> None:
        """A line, or several, with the line's end."""
        if self._lost:
            notice = f'{{"event": "log_lines_lost", "level": "warning", "lines": {self._lost}}}\n'
            if not self._written(notice):
                self._lost += 1
                return
            self._lost = 0
        if not self._written(line):
            self._lost += 1

    def flush(self) -> None:
        """Nothing is held back."""

    def _written(self, text: str) -> bool:
        """Whether it is out, or its beginning; the next one is then a line of its own again."""
        whole = self._torn + text.encode(errors="backslashreplace")
        try:
            size = os.write(self._number, whole)
        except OSError:
            return False
        self._torn = b"" if size == len(whole) else b"\n"
        return True
