"""A large body reaches the multipart parser in large pieces, and is the same body."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryFile
from types import SimpleNamespace
from typing import Annotated

import pytest
from fastapi import APIRouter, FastAPI, File, UploadFile
from fastapi.testclient import TestClient
from starlette import datastructures

from adapters.store import LocalStore
from server.pacing import Pacing
from server.uploads import PIECE, LargeBody, keep, nameless


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, 5 * PIECE + 3])
def test_whatever_comes_in_small_chunks_is_written_in_large_ones(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = APIRouter(route_class=LargeBody)
    got: list[bytes] = []
    writes: list[int] = []
    write = datastructures.UploadFile.write

    async def counted(file: datastructures.UploadFile, data: bytes) -> None:
        writes.append(len(data))
        await write(file, data)

    @router.post("/")
    def receive(sent: Annotated[UploadFile, File()]) -> None:
        got.append(sent.file.read())
        descriptor = Path(f"/proc/self/fd/{sent.file.fileno()}")
        assert descriptor.readlink().is_relative_to(tmp_path)

    monkeypatch.setattr(datastructures.UploadFile, "write", counted)
    app = FastAPI()
    app.state.registry = SimpleNamespace(store=LocalStore(tmp_path))
    app.state.pacing = Pacing(lambda: False)
    app.include_router(router)
    content = bytes(range(251)) * (size // 251 + 1)
    head = b'--x\r\nContent-Disposition: form-data; name="sent"; filename="a"\r\n\r\n'
    body = head + content[:size] + b"\r\n--x--\r\n"
    answer = TestClient(app).post(
        "/",
        content=(body[at : at + 1000] for at in range(0, len(body), 1000)),
        headers={"Content-Type": "Multipart/Form-Data; boundary=x"},
    )
    assert answer.status_code == 200
    assert got == [content[:size]]
    assert sum(writes) == size
    assert len(writes) <= 2 * (size // PIECE + 2)  # a piece may be written in two parts


def test_a_received_part_is_given_its_name_without_a_copy(tmp_path: Path) -> None:
    with nameless(tmp_path) as file:
        file.write(b"weights")
        assert list(tmp_path.iterdir()) == []  # whoever dies now leaves nothing
        keep(UploadFile(file), tmp_path / "kept")
        received, kept = os.fstat(file.fileno()), (tmp_path / "kept").stat()
    assert (kept.st_ino, kept.st_dev) == (received.st_ino, received.st_dev)
    assert (tmp_path / "kept").read_bytes() == b"weights"


def test_where_the_disk_has_no_nameless_files_it_is_copied(tmp_path: Path) -> None:
    with TemporaryFile(dir=tmp_path) as file:  # one that the kernel gives no name
        file.write(b"weights")
        file.seek(0)
        keep(UploadFile(file), tmp_path / "kept")
    assert (tmp_path / "kept").read_bytes() == b"weights"
