"""How an archive goes out: piece by piece, its first one before the status, so that this can fail.

Owns the streaming and the media type. Refuses what is in an archive (`adapters/archive.py`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from fastapi.responses import StreamingResponse
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool

TAR = "application/x-tar"
ARCHIVE = {"content": {TAR: {"schema": {"type": "string", "format": "binary"}}}}


async def sent(pieces: Iterator[bytes]) -> StreamingResponse:
    """The answer; what fails at once raises, and still has a status."""
    first = await run_in_threadpool(next, pieces)
    return StreamingResponse(_all(first, pieces), media_type=TAR)


async def _all(first: bytes, rest: Iterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in iterate_in_threadpool(rest):
        yield piece
