"""A body of many megabytes, received in pieces of one, onto the disk on which it will stay.

Owns the size of the pieces in which a large multipart body reaches its parser, and where the parser
puts them. As they come from the network they have 64 KiB, and each is written by a thread that must
be woken first: 1,280 times for 80 MB, each time behind whatever keeps the cores busy. Starlette
spools to the system's temporary folder, which may be small, or memory, and is another disk. Bounds
on the body and on how long it may take are before this, in `server/bounds.py` and
`server/connections.py`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from tempfile import SpooledTemporaryFile, TemporaryFile
from typing import Any, BinaryIO, cast

from fastapi import HTTPException, Request, Response, UploadFile
from fastapi.routing import APIRoute
from starlette.datastructures import FormData, Headers
from starlette.formparsers import MultiPartException, MultiPartParser

from adapters.pace import give_way
from server.pacing import Pacing

PIECE = 2**20


class _Parser(MultiPartParser):
    """Starlette's; a file part goes to a nameless file in `disk`.

    It and `_InPieces` reach into what Starlette keeps to itself (`_current_part`, `_get_form`), for
    which it has no public name; a test sees that parts do land there.
    """

    def __init__(
        self, disk: Path, headers: Headers, stream: AsyncGenerator[bytes, None], **bounds: Any
    ) -> None:
        super().__init__(headers, stream, **bounds)
        self._disk = disk

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        if (part := self._current_part.file) is not None:
            self._files_to_close_on_error.pop().close()
            part.file = file = nameless(self._disk)
            self._files_to_close_on_error.append(cast("SpooledTemporaryFile[bytes]", file))


class _InPieces(Request):
    async def stream(self) -> AsyncGenerator[bytes, None]:
        pacing: Pacing = self.app.state.pacing
        held = bytearray()
        async for chunk in super().stream():
            held += chunk
            if len(held) >= PIECE:
                yield bytes(held)
                await pacing.received(len(held))
                held.clear()
        if held:
            yield bytes(held)
        yield b""

    async def _get_form(self, **bounds: Any) -> FormData:
        content_type = self.headers.get("Content-Type", "").lower()
        if not content_type.startswith("multipart/form-data"):
            return await super()._get_form(**bounds)
        if self._form is None:
            parser = _Parser(
                self.app.state.registry.store.disk, self.headers, self.stream(), **bounds
            )
            try:
                self._form = await parser.parse()
            except MultiPartException as error:
                raise HTTPException(400, error.message) from None
        return self._form


class LargeBody(APIRoute):
    """A route that reads its body so (a `route_class`)."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def in_pieces(request: Request) -> Response:
            return await answer(_InPieces(request.scope, request.receive))

        return in_pieces


def nameless(folder: Path) -> BinaryIO:
    """A temporary file that `keep` can give a name, where the disk has such files."""
    try:
        return os.fdopen(os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), "w+b")
    except OSError:
        return TemporaryFile(dir=folder)


def keep(part: UploadFile, target: Path) -> None:
    """Give a received part a name; it is copied only where its disk knows no nameless files."""
    part.file.flush()
    try:
        # With a descriptor of a folder, which an absolute path ignores, Python follows the link.
        opened = f"/proc/self/fd/{part.file.fileno()}"
        os.link(opened, target, src_dir_fd=0, follow_symlinks=True)
    except OSError:
        with target.open("xb") as file:
            while chunk := part.file.read(PIECE):
                file.write(chunk)
                give_way()
