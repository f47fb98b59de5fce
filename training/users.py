"""The fleet's input: many users' preference pairs, one user at a time.

Owns finding each user's data, in a folder of `<user>.jsonl` and `<user>.parquet` files or by
the `user_id` column of one file, and checking the user's name. Refuses to stop at one user:
what is wrong with his data is his `problem`, and the next one follows. Only one user's pairs
are in memory. A user without a problem has pairs, and a name that is fit to be a folder's and
an adapter's; with one, `user` may be any text at all and is there to be shown, not used.
"""

import logging
import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from adapters.errors import InvalidName
from adapters.names import check_adapter_id, check_user_id
from training.data import ANSWER_COLUMNS, PAIR_COLUMNS, PreferencePair, load_pairs, pair_of
from training.errors import DataError
from training.sources import (
    Record,
    is_parquet,
    map_parquet,
    parse_object,
    read_lines,
    read_parquet,
    refuse_missing,
    spoken,
)

logger = logging.getLogger(__name__)

USER_COLUMN = "user_id"
USER_FILES = (".jsonl", ".parquet")

PairsOf = Callable[[str], Iterable[PreferencePair]]


@dataclass(frozen=True)
class UserData:
    """One user's pairs; or none, and the sentence that says why."""

    user: str
    pairs: tuple[PreferencePair, ...]
    problem: str | None = None
    held_out: tuple[PreferencePair, ...] = ()
    """Pairs that are not trained on, for a gate to ask."""


@dataclass(frozen=True)
class Users:
    """Users to walk over once, and how many they are."""

    count: int
    each: Iterator[UserData]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[UserData]:
        return self.each


def users_of(source: str | Path) -> Users:
    """Every user of a folder, or of a file with a `user_id` column, in the order of their names.

    Raises DataError, one sentence, before the first user: where there is nothing, and where a
    row of the file does not say whose it is. Hidden files of a folder are passed over, and
    others that are neither JSONL nor Parquet, with a line in the log.
    """
    path = Path(source)
    if path.is_dir():
        files = _files_by_user(path)
        return Users(len(files), _each(files, lambda user: _pairs_of_files(files[user])))
    refuse_missing(path)
    if is_parquet(path):
        rows = _rows_by_user(path)
        _refuse_empty(path, rows)
        return Users(len(rows), _users_of_parquet(path, rows))
    lines = _lines_by_user(path)
    _refuse_empty(path, lines)
    return Users(len(lines), _users_of_jsonl(path, lines))


def with_held_out(users: Users, held_out: Users) -> Users:
    """The users with their pairs of another source; both come in the order of their names.

    Who has none there is judged without. What is wrong with them is the user's problem.
    """

    def each() -> Iterator[UserData]:
        others = iter(held_out)
        other = next(others, None)
        for user in users:
            while other is not None and other.user < user.user:
                other = next(others, None)
            if other is None or other.user != user.user:
                yield user
                continue
            problem = user.problem or other.problem
            yield replace(user, held_out=other.pairs, problem=problem)

    return Users(len(users), each())


def _each(users: Collection[str], pairs_of: PairsOf) -> Iterator[UserData]:
    for user in sorted(users):
        yield _user_data(user, pairs_of)


def _user_data(user: str, pairs_of: PairsOf) -> UserData:
    try:
        # A user's id first, which refuses the '/' that an adapter's may have.
        check_adapter_id(check_user_id(user))
        return UserData(user, tuple(pairs_of(user)))
    except (DataError, InvalidName) as error:
        return UserData(user, (), str(error))


def _files_by_user(folder: Path) -> dict[str, list[Path]]:
    files: defaultdict[str, list[Path]] = defaultdict(list)
    others = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.suffix.lower() in USER_FILES:
            files[path.stem].append(path)
        else:
            others.append(path.name)
    if not files:
        raise DataError(f"{folder} holds no <user>.jsonl or <user>.parquet; put one there a user.")
    if others:
        logger.warning("Not read in %s, neither .jsonl nor .parquet: %s", folder, others)
    return files


def _pairs_of_files(files: list[Path]) -> list[PreferencePair]:
    if len(files) > 1:
        names = " and ".join(file.name for file in files)
        raise DataError(f"There are {len(files)} files for one user, {names}; keep one of them.")
    return load_pairs(files[0])


def _lines_by_user(path: Path) -> dict[str, list[tuple[int, int]]]:
    """Number and offset of each line, by user; the text is read again when its turn comes."""
    lines: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for line in read_lines(path):
        where = f"{path}:{line.number}"
        lines[_owner(parse_object(line.text, where), where)].append((line.number, line.offset))
    return lines


def _users_of_jsonl(path: Path, lines: dict[str, list[tuple[int, int]]]) -> Iterator[UserData]:
    def pairs_of(user: str) -> Iterator[PreferencePair]:
        for number, offset in lines[user]:
            file.seek(offset)
            where = f"{path}:{number}"
            yield pair_of(parse_object(file.readline(), where), where)

    with path.open("rb") as file:
        yield from _each(lines, pairs_of)


def _rows_by_user(path: Path) -> dict[str, list[int]]:
    """The rows of each user, from 0; only the `user_id` column is read."""
    rows: defaultdict[str, list[int]] = defaultdict(list)
    records = read_parquet(path, [USER_COLUMN], needed=[USER_COLUMN, *ANSWER_COLUMNS])
    for row, (where, record) in enumerate(records):
        rows[_owner(record, where)].append(row)
    return rows


def _users_of_parquet(path: Path, rows: dict[str, list[int]]) -> Iterator[UserData]:
    def pairs_of(user: str) -> Iterator[PreferencePair]:
        with spoken(f"The rows of {user} in {path} cannot be read"):
            columns: dict[str, list[object]] = data[rows[user]]
        for row, values in zip(rows[user], zip(*columns.values(), strict=True), strict=True):
            yield pair_of(dict(zip(columns, values, strict=True)), f"{path}: row {row + 1}")

    with tempfile.TemporaryDirectory(prefix="bapo-users-") as folder:
        data = map_parquet(path, PAIR_COLUMNS, folder)
        yield from _each(rows, pairs_of)


def _owner(record: Record, where: str) -> str:
    user = record.get(USER_COLUMN)
    if user is None:
        raise DataError(f"{where}: '{USER_COLUMN}' is missing, so nobody knows whose pair this is")
    if isinstance(user, bool) or not isinstance(user, str | int):
        raise DataError(f"{where}: '{USER_COLUMN}' must be text or a whole number")
    return str(user)


def _refuse_empty(path: Path, users: Collection[str]) -> None:
    if not users:
        raise DataError(f"{path} is empty; give at least one user's preference pairs.")
