"""A large body reaches the multipart parser in large pieces, and is the same body."""

from __future__ import annotations

from typing import Annotated

import pytest
from fastapi import APIRouter, FastAPI, File, UploadFile
from fastapi.testclient import TestClient
from starlette import datastructures

from server.api.uploads import PIECE, LargeBody


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, 5 * PIECE + 3])
def test_whatever_comes_in_small_chunks_is_written_in_large_ones(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = APIRouter(route_class=LargeBody)
    got: list[bytes] = []
    writes: list[int] = []
    write = datastructures.UploadFile.write

    async def counted(file: datastructures.UploadFile, data: bytes) -> None:
        writes.append(len(data))
        await write(file, data)

    @router.post("/")
    async def receive(sent: Annotated[UploadFile, File()]) -> None:
        got.append(await sent.read())

    monkeypatch.setattr(datastructures.UploadFile, "write", counted)
    app = FastAPI()
    app.include_router(router)
    content = bytes(range(251)) * (size // 251 + 1)
    head = b'--x\r\nContent-Disposition: form-data; name="sent"; filename="a"\r\n\r\n'
    body = head + content[:size] + b"\r\n--x--\r\n"
    answer = TestClient(app).post(
        "/",
        content=(body[at : at + 1000] for at in range(0, len(body), 1000)),
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )
    assert answer.status_code == 200
    assert got == [content[:size]]
    assert sum(writes) == size
    assert len(writes) <= 2 * (size // PIECE + 2)  # a piece may be written in two parts
