"""A process that imports torch and the trainer while the first one does, for the workers to fork.

Owns when Python's forkserver begins, and with how many threads. Refuses to know whether workers
will be needed: one that was begun for nothing costs a core some seconds, and ends with the process.
Imports nothing large itself; that is its use.
"""

import os
import signal
from multiprocessing import forkserver, resource_tracker

PRELOAD = ["training.preloaded"]


def begin(workers: int | None) -> None:
    """Start importing in the background, for so many processes; None is as many as there are cores.

    Returns at once; the first call decides. Where there can be only one worker nothing is begun.
    """
    count = workers or cores()
    if count == 1:
        return
    forkserver.set_forkserver_preload(PRELOAD)
    # Ctrl-C in the middle of imports would show; the workers hear it again once they work.
    resource_tracker.ensure_running()
    before, threads = os.environ.get("OMP_NUM_THREADS"), threads_of(count)
    # Whatever was set is for one process: more threads than cores wait for each other by spinning,
    # and were measured to be ten times slower. The first process keeps what it was given.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def threads_of(workers: int) -> int:
    """How many threads each of so many processes may have."""
    return max(1, cores() // workers)


def cores() -> int:
    return len(os.sched_getaffinity(0))
