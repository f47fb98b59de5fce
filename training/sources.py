"""Where records come from: a file, a folder of `datasets`, or the Hugging Face Hub.

Owns opening a source and walking over its rows, each with its place for messages. Refuses
what a row means; that is `data.py`'s. Only JSONL is read by our own code; pyarrow and
`datasets` are imported where they are used, and nothing is downloaded for a local path.

    source                          place of a record    read by
    pairs.jsonl, any other file     FILE:LINE            read_jsonl
    pairs.parquet                   FILE: row N          pyarrow, a batch at a time
    a folder of `save_to_disk`      FOLDER: row N        datasets, memory-mapped
    owner/name[/config][:split]     SOURCE: row N        datasets, from the Hub or its cache

What exists on this disk is never looked for on the Hub; the split is `train` by default, for
a folder of several splits too, and may be a slice: `owner/name:train[:500]`. Rows count from 1.
"""

import json
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from training.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

Record = dict[str, Any]

_HUB_NAME = re.compile(
    r"(?P<path>[\w-][\w.-]*/[\w-][\w.-]*)(/(?P<config>[\w.-]+))?(:(?P<split>\w[\w.]*(\[.*\])?))?",
    re.ASCII,
)
_FILE_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".txt", ".arrow", ".gz", ".yaml")
_SHOWN_COLUMNS = 12
_BATCH_ROWS = 512


def read_records(
    source: str | Path, columns: Collection[str], needed: Sequence[str] = ()
) -> Iterator[tuple[str, Record]]:
    """Each record of a source with its place. Raises DataError, one sentence.

    Of a source that has columns only `columns` are read, and those `needed` must be there. A
    `Path` is always a place on this disk.
    """
    path = Path(source)
    if path.is_dir():
        return _saved_rows(path, columns, needed)
    if is_parquet(path):
        return read_parquet(path, columns, needed)
    if isinstance(source, str) and (name := _hub_name(source)):
        return _hub_rows(source, name, columns, needed)
    return read_jsonl(source)


def is_parquet(path: Path) -> bool:
    """Whether a file is to be read as Parquet; its name decides."""
    return path.suffix.lower() == ".parquet"


class Line(NamedTuple):
    """One line of a file that is not blank."""

    number: int
    offset: int
    """Bytes in front of it."""
    text: bytes


def read_lines(path: str | Path) -> Iterator[Line]:
    """The lines of a file, blank ones skipped. Raises DataError."""
    file = Path(path)
    refuse_missing(file)
    offset = 0
    try:
        with file.open("rb") as lines:
            for number, text in enumerate(lines, start=1):
                if text.strip():
                    yield Line(number, offset, text)
                offset += len(text)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def read_jsonl(path: str | Path) -> Iterator[tuple[str, Record]]:
    """Each JSON object of a file with its place, "FILE:LINE"; blank lines are skipped."""
    for line in read_lines(path):
        where = f"{path}:{line.number}"
        yield where, parse_object(line.text, where)


def parse_object(line: bytes, where: str) -> Record:
    """The JSON object that a line holds. Raises DataError that begins with `where`."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg}, column {error.colno})") from error
    except (RecursionError, ValueError) as error:
        # Brackets a thousand deep, or a number of thousands of digits.
        raise DataError(f"{where}: JSON that is too deep or has too long a number") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: a JSON object is needed, this is {type(record).__name__}")
    return record


def read_parquet(
    path: Path, columns: Collection[str], needed: Sequence[str] = ()
) -> Iterator[tuple[str, Record]]:
    """Each row of a Parquet file with its place, "FILE: row N". Raises DataError.

    Read by pyarrow, since `datasets` would first copy the whole file into its cache.
    """
    refuse_missing(path)
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    with spoken(f"{path} cannot be read as Parquet"), pq.ParquetFile(path) as file:
        found = _present(path, file.schema_arrow.names, columns, needed)
        number = 0
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=found):
            for record in batch.to_pylist():
                number += 1
                yield f"{path}: row {number}", record


def map_parquet(path: Path, columns: Collection[str], folder: str) -> "Dataset":
    """A Parquet file for reading rows in any order: a memory-mapped copy of it in `folder`.

    Parquet itself can only be read a group of rows at a time. Raises DataError.
    """
    import pyarrow.parquet as pq
    from datasets import Dataset

    with spoken(f"{path} cannot be copied to {folder}"):
        found = _present(path, pq.read_schema(path).names, columns)
        return Dataset.from_parquet(str(path), columns=found, cache_dir=folder)


def refuse_missing(path: Path) -> None:
    """Raise DataError unless there is a file."""
    if path.is_dir():
        raise DataError(f"{path} is a folder; a file is needed.")
    if not path.is_file():
        raise DataError(f"There is no file {path}.")


def _saved_rows(
    folder: Path, columns: Collection[str], needed: Sequence[str]
) -> Iterator[tuple[str, Record]]:
    """The rows of a folder that `save_to_disk` wrote, of its `train` where it has splits."""
    from datasets import DatasetDict, load_from_disk

    with spoken(f"{folder} cannot be read as a folder written by save_to_disk"):
        data = load_from_disk(str(folder))
        if isinstance(data, DatasetDict):
            if "train" not in data:
                raise DataError(
                    f"{folder} has no split 'train'; give one of its folders {_listed([*data])}."
                )
            data = data["train"]
        yield from _rows(folder, data, columns, needed)


class _HubName(NamedTuple):
    """A data set of the Hub."""

    path: str
    config: str | None
    split: str


def _hub_name(source: str) -> _HubName | None:
    """What `owner/name[/config][:split]` names; None for what is here, or looks like a file."""
    match = _HUB_NAME.fullmatch(source)
    if match is None or Path(source).exists() or source.lower().endswith(_FILE_SUFFIXES):
        return None
    if Path(match["path"]).exists():  # `datasets` would read that folder instead
        return None
    return _HubName(match["path"], match["config"], match["split"] or "train")


def _hub_rows(
    source: str, name: _HubName, columns: Collection[str], needed: Sequence[str]
) -> Iterator[tuple[str, Record]]:
    from datasets import load_dataset

    wrong = f"There is no file or folder {source}, and no such data set can be had from the Hub"
    with spoken(wrong):
        data = load_dataset(name.path, name.config, split=name.split)
    with spoken(f"{source} cannot be read"):
        yield from _rows(source, data, columns, needed)


def _rows(
    source: str | Path, data: "Dataset", columns: Collection[str], needed: Sequence[str]
) -> Iterator[tuple[str, Record]]:
    found = _present(source, data.column_names, columns, needed)
    for number, record in enumerate(data.select_columns(found), start=1):
        yield f"{source}: row {number}", record


def _present(
    source: str | Path,
    there: Sequence[str],
    columns: Collection[str],
    needed: Sequence[str] = (),
) -> list[str]:
    """Those of `columns` that are there. Raises DataError where one of `needed` is not."""
    for name in needed:
        if name not in there:
            raise DataError(
                f"{source} has no column '{name}', only {_listed(there)}; rename or add it."
            )
    return [name for name in there if name in columns]


def _listed(names: Sequence[str]) -> str:
    """Names one after another, cut where there are very many."""
    more = [f"{len(names) - _SHOWN_COLUMNS} more"] if len(names) > _SHOWN_COLUMNS else []
    return ", ".join([repr(name) for name in names[:_SHOWN_COLUMNS]] + more) or "none"


@contextmanager
def spoken(what: str) -> Iterator[None]:
    """Anything that Arrow, `datasets` or the Hub's client raises, as one sentence."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # they share no base class, and parsers raise what they like
        reason = re.sub(r"\. (?=[A-Z])", "; ", " ".join(str(error).split()))[:300].rstrip(".")
        raise DataError(f"{what}: {reason or type(error).__name__}.") from error
