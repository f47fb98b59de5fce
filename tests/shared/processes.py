"""Processes that a test starts and ends: what they hear, and who of them is still there."""

from __future__ import annotations

import os
import signal

import psutil


def interruptible() -> None:
    """For `preexec_fn`: a shell starts background jobs deaf to Ctrl-C, and they pass that on."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def members(session: int) -> list[int]:
    """The living processes of a session, which are whatever its first one started."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return found
