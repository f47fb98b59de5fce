"""A disk that fills up under the running server: uploads say so, chat goes on, nothing is lost.

The disk is starved by the kernel, through the running process's limit on the size of any file it
writes; what comes back from `write` is an error of the same family as a full disk's.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator

import pytest

from served import TASTES, Served, admin, chat, refused, upload


@contextlib.contextmanager
def starved(process_id: int, largest_file: int) -> Iterator[None]:
    soft, hard = resource.prlimit(process_id, resource.RLIMIT_FSIZE)
    resource.prlimit(process_id, resource.RLIMIT_FSIZE, (largest_file, hard))
    try:
        yield
    finally:
        resource.prlimit(process_id, resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("largest_file", [0, 100_000])
def test_a_full_disk_is_said_and_passes(served: Served, largest_file: int) -> None:
    taste = TASTES[0]
    before = admin(served, "GET", "/adapters").json()
    text = chat(served, served.keys[taste]).json()["choices"][0]["message"]["content"]
    with starved(served.server.process_id, largest_file):
        refused(upload(served, f"late-{largest_file}", served.folders[taste]), 507, "store_full")
        during = chat(served, served.keys[taste])
        assert during.json()["choices"][0]["message"]["content"] == text
    assert admin(served, "GET", "/adapters").json() == before
    after = upload(served, f"late-{largest_file}", served.folders[taste])
    assert after.status_code == 201, after.text
