"""An export on its way: in pieces of any size, cut anywhere, and made up by a stranger."""

import io
import tarfile
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from adapters.archive import BLOCK, Unpacker, packed
from adapters.artifact import SERVED_FILES
from adapters.base import BaseModelInfo
from adapters.carriage import Arrival, importing, sent_folder, sent_registry
from adapters.errors import AdapterError, Conflict, InvalidAdapter, StoreError, StoreFull
from adapters.limits import Limits
from adapters.registry import Registry, open_registry
from adapters.strictjson import Malformed
from adapters.transfer import Transfer, export_registry
from adapters.validation import validate

Craft = Callable[..., Path]
Limit = Callable[[int], AbstractContextManager[None]]
HEX = "a" * 64


@pytest.fixture
def registry(tmp_path: Path, craft: Craft, base: BaseModelInfo) -> Iterator[Registry]:
    """Two adapters and a user; the databases and what is in every table are `test_transfer`'s."""
    opened = open_registry(tmp_path / "data")
    for seed, name in enumerate(("calm", "loud")):
        opened.publish(name, craft(seed=seed), base=base, activate=True)
    opened.accounts.create_user("ann")
    yield opened
    opened.close()


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Registry]:
    opened = open_registry(tmp_path / "empty")
    yield opened
    opened.close()


def fill(
    registry: Registry, base: BaseModelInfo, pieces: Iterable[bytes], limits: Limits | None = None
) -> Transfer:
    """What a server does with a body of these pieces."""

    def check(place: Path) -> None:
        validate(place, base, limits or Limits())

    with importing(registry, check, "root") as under_way:
        for piece in pieces:
            under_way.feed(piece)
        return under_way.commit()


def is_untouched(registry: Registry) -> bool:
    return not registry.list_adapters() and not registry.audit() and not drafts(registry)


def drafts(registry: Registry) -> list[Path]:
    with registry.store.scratch() as scratch:
        return [folder for folder in scratch.parent.iterdir() if folder != scratch]


def in_pieces(archive: bytes, size: int) -> Iterator[bytes]:
    return (archive[at : at + size] for at in range(0, len(archive), size))


@pytest.mark.parametrize("size", [1, 511, BLOCK, 10_000])
def test_everything_arrives_in_pieces_of_any_size(
    registry: Registry, empty: Registry, base: BaseModelInfo, size: int
) -> None:
    archive = b"".join(sent_registry(registry))
    told = fill(empty, base, in_pieces(archive, size))
    assert (told.rows["adapters"], told.rows["users"], told.blobs) == (2, 1, 2)
    assert empty.list_adapters() == registry.list_adapters()
    for digest in empty.digests():
        empty.store.verify(digest)
    assert empty.audit()[0].actor == "root"
    assert not drafts(empty)
    assert not drafts(registry)


def test_a_folder_and_an_archive_are_the_same(registry: Registry, tmp_path: Path) -> None:
    export_registry(registry, tmp_path / "local")
    (tmp_path / "far").mkdir()
    arrival = Arrival(tmp_path / "far")
    for piece in sent_registry(registry):
        arrival.feed(piece)
    arrival.finish()
    found, expected = (
        {file.relative_to(root): file.read_bytes() for file in root.rglob("*") if file.is_file()}
        for root in (tmp_path / "far", tmp_path / "local")
    )
    assert found == expected
    with tarfile.open(fileobj=io.BytesIO(b"".join(sent_folder(tmp_path / "far")))) as archive:
        assert archive.getnames()[-1] == "export.json"
        assert set(map(Path, archive.getnames())) == set(expected)


def test_cut_anywhere_nothing_has_changed(
    registry: Registry, empty: Registry, base: BaseModelInfo
) -> None:
    archive = b"".join(sent_registry(registry))
    for length in (0, 100, BLOCK, 5_000, len(archive) // 2, len(archive) - 3 * BLOCK):
        with pytest.raises(StoreError, match="broke off"):
            fill(empty, base, [archive[:length]])
        assert is_untouched(empty)


def test_a_used_registry_takes_nothing(registry: Registry, base: BaseModelInfo) -> None:
    def read() -> Iterator[bytes]:
        pytest.fail("it was read")
        yield b""

    with pytest.raises(Conflict, match="not empty"):
        fill(registry, base, read())


def test_what_cannot_be_read_is_said_inside(
    registry: Registry, empty: Registry, base: BaseModelInfo, tmp_path: Path
) -> None:
    damaged = max((tmp_path / "data" / "store").rglob("adapter_model.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(StoreError, match="is damaged: upload it again"):
        fill(empty, base, sent_registry(registry))
    assert is_untouched(empty)


def test_an_adapter_that_this_base_cannot_serve_is_refused(
    registry: Registry, empty: Registry, base: BaseModelInfo
) -> None:
    with pytest.raises(InvalidAdapter, match=r"rank.*\(in "):
        fill(empty, base, sent_registry(registry), Limits(max_rank=1))
    assert is_untouched(empty)


def test_a_full_disk_is_said(
    registry: Registry, empty: Registry, base: BaseModelInfo, file_limit: Limit
) -> None:
    archive = b"".join(sent_registry(registry))
    with file_limit(100), pytest.raises(StoreFull):
        fill(empty, base, [archive])
    assert is_untouched(empty)


def tar(name: str, content: bytes = b"", **fields: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % BLOCK)


HOSTILE = {
    "noise": b"\x01" * BLOCK,
    "a page": b"<html>" + b" " * BLOCK,
    "a way up": tar("../outside", b"x"),
    "an absolute name": tar("/tmp/outside", b"x"),
    "a way up inside": tar("tables/../../outside", b"x"),
    "a blob's other file": tar(f"blobs/{HEX}/adapter_model.bin", b"x"),
    "a made-up table": tar("tables/passwords.jsonl", b"x"),
    "a symbolic link": tar("export.json", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a hard link": tar("export.json", type=tarfile.LNKTYPE, linkname="tables/users.jsonl"),
    "a pipe": tar("export.json", type=tarfile.FIFOTYPE),
    "a folder": tar("tables", type=tarfile.DIRTYPE),
    "a long name": tar("a" * 200, b"x"),
    "extensions": tar("pax", b"x" * 100, type=tarfile.XHDTYPE),
    "a sparse file": tar("export.json", type=tarfile.GNUTYPE_SPARSE),
    "a file twice": tar("tables/users.jsonl", b"x") + tar("tables/users.jsonl", b"y"),
    "a huge head": tar("export.json", size=2**40),
    "a huge config": tar(f"blobs/{HEX}/adapter_config.json", size=2**33),
    "more after the end": bytes(2 * BLOCK) + tar("tables/users.jsonl", b"x"),
    "no end of zeros": bytes(200 * BLOCK),
}


@pytest.mark.parametrize("archive", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_archive_is_one_sentence(
    empty: Registry, base: BaseModelInfo, tmp_path: Path, archive: bytes
) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(AdapterError, match=r"^[^\n]*\.$"):
        fill(empty, base, [archive])
    assert is_untouched(empty)
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before] == []


def test_a_negative_size_is_refused() -> None:
    header = bytearray(tar("export.json"))
    header[124:136] = b"\xff" * 12  # base 256, below zero
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    with pytest.raises(Malformed):
        Unpacker(lambda name, size: io.BytesIO(), lambda name: None).feed(bytes(header))


def test_only_a_piece_is_in_memory(registry: Registry, tmp_path: Path) -> None:
    """A file of 64 MiB goes through both sides in a few."""
    piece = bytes(2**18)
    name, size = f"blobs/{HEX}/{SERVED_FILES[1]}", 2**26
    (tmp_path / "far").mkdir()
    arrival = Arrival(tmp_path / "far")
    tracemalloc.start()
    for chunk in packed([(name, size, (piece for _ in range(size // len(piece))))]):
        arrival.feed(chunk)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "far" / name).stat().st_size == size
    assert peak < 8 * 2**20
