"""Watching a server's processes from outside while it is soaked: memory, open files, its engine.

Owns the samples and what they say; asks the kernel only, never the server.
"""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import dataclass

import psutil
from scipy.stats import theilslopes

MEBIBYTE = 2**20
SAMPLE_SECONDS = 2.0
MEMORY_MIB_A_MINUTE = 3.0
"""More than this, and not by chance, is a leak. A sound server showed 2.2 in its first minutes with
five engines killed, one that kept its dead engines' tokenizers 4.2 (`benchmarks/README.md`)."""
MORE_FILES = 8
"""Open files more than before that are no leak: a library's first use of something."""


@dataclass(frozen=True)
class Slope:
    """MiB a minute: Theil and Sen's estimate, and its interval of 95 %."""

    estimate: float
    low: float
    high: float

    @property
    def is_a_leak(self) -> bool:
        return self.low > MEMORY_MIB_A_MINUTE


class Watch(threading.Thread):
    """Samples the server's own process and its engine's until `stop` is set."""

    def __init__(self, process_id: int) -> None:
        super().__init__(daemon=True)
        self.stop = threading.Event()
        self.server = psutil.Process(process_id)
        self.seconds: list[float] = []
        self.memory: list[float] = []
        """Of the server's process, MiB; one for each of `seconds`."""
        self.engine_memory: list[float] = []

    def run(self) -> None:
        began = time.monotonic()
        while not self.stop.wait(SAMPLE_SECONDS):
            self.seconds.append(time.monotonic() - began)
            self.memory.append(self.server.memory_info().rss / MEBIBYTE)
            if (engine := self.engine()) is not None:
                with_engine = _resident_mebibytes(engine)
                self.engine_memory += [with_engine] if with_engine else []

    def engine(self) -> psutil.Process | None:
        """The engine's process: the server's grandchild, by way of the forkserver."""
        for process in self.server.children(recursive=True):
            try:
                if process.ppid() != self.server.pid and process.status() != psutil.STATUS_ZOMBIE:
                    return process
            except psutil.Error:
                continue
        return None

    def open_files(self) -> int:
        return int(self.server.num_fds())

    def slope(self, warm_up_seconds: float) -> Slope:
        """Of the server's memory after the warm-up."""
        later = [n for n, at in enumerate(self.seconds) if at >= warm_up_seconds]
        minutes = [self.seconds[n] / 60 for n in later]
        found = theilslopes([self.memory[n] for n in later], minutes)
        return Slope(float(found.slope), float(found.low_slope), float(found.high_slope))

    @property
    def middle(self) -> tuple[float, float]:
        """Median memory of the server's process and of its engines', MiB."""
        return statistics.median(self.memory), statistics.median(self.engine_memory)


def _resident_mebibytes(process: psutil.Process) -> float | None:
    try:
        return float(process.memory_info().rss) / MEBIBYTE
    except psutil.Error:
        return None
