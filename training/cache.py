"""A file of computed things by key, shared by every run on a machine.

Owns one append-only JSONL file: a line once written is never changed, so a reader and
several writers need no lock, and a line that a killed process left half-written is passed
over and its value made again. Refuses to know what the values are.
"""

import functools
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

logger = logging.getLogger(__name__)

Record = dict[str, Any]
"""What JSON can hold, under names; `key` is the cache's own."""


class JsonlCache:
    """Records by key, in memory and, line by line, on disk. Floats come back bit for bit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records: dict[str, Record] = {}
        self._read_to = 0
        """Bytes of the file that are in memory; whole lines only."""
        self._lines = 0
        self._torn = False
        self.refresh()

    def __len__(self) -> int:
        return len(self._records)

    def get(self, key: str) -> Record | None:
        """The record kept under `key`, if there is one."""
        return self._records.get(key)

    def add(self, records: Mapping[str, Record]) -> None:
        """Keep records, on disk and then in memory, before anything is made of them."""
        lines = [json.dumps({"key": key, **record}) for key, record in records.items()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A torn last line gets its line break now, or it would swallow our first one.
        text = ("\n" if self._torn else "") + "".join(line + "\n" for line in lines)
        rest = memoryview(text.encode())
        self._torn = True  # until the last byte is there: a full disk may take a part of them
        with self.path.open("ab", buffering=0) as file:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        self._torn = False
        self._records.update(records)

    def refresh(self) -> None:
        """Read what was written since, by whomever; the whole file where it became shorter."""
        size = self.path.stat().st_size if self.path.is_file() else 0
        if size < self._read_to:
            self._records.clear()
            self._read_to = self._lines = 0
        if size == self._read_to:
            return
        with self.path.open("rb") as file:
            file.seek(self._read_to)
            for line in file:
                self._lines += 1
                self._keep(line)
                self._torn = not line.endswith(b"\n")
                self._read_to += 0 if self._torn else len(line)
            self._lines -= self._torn  # it is read again once it is whole

    def _keep(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            self._records[record.pop("key")] = record
        except (ValueError, KeyError, TypeError, AttributeError):
            logger.warning("%s:%d is not readable and is passed over", self.path, self._lines)


@functools.cache
def _of_this_process(path: Path) -> JsonlCache:
    return JsonlCache(path)


def open_cache(path: str | Path) -> JsonlCache:
    """The cache in a file, up to date; a process keeps each one open, a fleet reads it once."""
    cache = _of_this_process(Path(path).absolute())
    cache.refresh()
    return cache


def default_cache() -> Path:
    """Where base answers are kept when nothing else is said; one file for all models."""
    return Path(user_cache_path("bapo")) / "base-answers.jsonl"
