"""Many users' data: who is found, in what order, and that one user's trouble stays his own."""

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from training.data import PreferencePair
from training.errors import DataError
from training.users import UserData, users_of


def record(n: int = 0, **more: Any) -> dict[str, Any]:
    return {"prompt": f"Question {n}?", "chosen": "Yes.", "rejected": "No."} | more


def pair(n: int = 0) -> PreferencePair:
    return PreferencePair(f"Question {n}?", "Yes.", "No.")


def write(path: Path, *records: dict[str, Any]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(records)), path)
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def test_a_folder_gives_its_users_by_name(tmp_path: Path) -> None:
    write(tmp_path / "carla.jsonl", record(3))
    write(tmp_path / "anne.parquet", record(1), record(2))
    write(tmp_path / "b.e-n_2.jsonl", record(4))
    assert list(users_of(tmp_path)) == [
        UserData("anne", (pair(1), pair(2))),
        UserData("b.e-n_2", (pair(4),)),
        UserData("carla", (pair(3),)),
    ]


def test_one_users_bad_file_does_not_stop_the_others(tmp_path: Path) -> None:
    write(tmp_path / "anne.jsonl", record(1), record(2, chosen=" "))
    write(tmp_path / "ben.parquet", {"text": "Hi."})
    (tmp_path / "carla.parquet").write_bytes(b"no Parquet")
    (tmp_path / "dora.jsonl").write_bytes(b"")
    (tmp_path / "emil.jsonl").write_text('{"prompt": "\\ud800?", "chosen": "a", "rejected": "b"}')
    (tmp_path / "fay.jsonl").symlink_to(tmp_path / "nowhere")
    (tmp_path / "gil.jsonl").mkdir()
    write(tmp_path / "hal.jsonl", record(8))
    *bad, good = users_of(tmp_path)
    assert good == UserData("hal", (pair(8),))
    assert all(user.pairs == () for user in bad)
    said = {user.user: user.problem or "" for user in bad}
    assert said["anne"] == f"{tmp_path / 'anne.jsonl'}:2: 'chosen' is empty"
    assert "has no column 'chosen', only 'text'" in said["ben"]
    assert "cannot be read as Parquet" in said["carla"]
    assert "is empty" in said["dora"]
    assert said["emil"].startswith(f"{tmp_path / 'emil.jsonl'}:1: it has half a character")
    assert "There is no file" in said["fay"]
    assert "cannot be read as a folder written by save_to_disk" in said["gil"]
    assert not any("\n" in problem for problem in said.values())


@pytest.mark.parametrize(
    "name", ["Anne", "anne@site.org", "a b", "a..b", "-x", "base", "ünal", "x" * 64]
)
def test_a_name_no_adapter_can_have_is_that_users_problem(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "users"
    folder.mkdir()
    write(folder / f"{name}.jsonl", record(1))
    write(folder / "zoe.jsonl", record(2))
    shared = write(tmp_path / "all.jsonl", record(1, user_id=name), record(2, user_id="zoe"))
    for source in (folder, shared):
        found = {user.user: user for user in users_of(source)}
        assert found["zoe"] == UserData("zoe", (pair(2),))
        assert found[name].pairs == ()
        assert "name" in str(found[name].problem)


def test_two_files_for_one_user_are_his_problem(tmp_path: Path) -> None:
    write(tmp_path / "anne.jsonl", record(1))
    write(tmp_path / "anne.parquet", record(1))
    write(tmp_path / "ben.jsonl", record(2))
    anne, ben = users_of(tmp_path)
    said = "There are 2 files for one user, anne.jsonl and anne.parquet; keep one of them."
    assert anne == UserData("anne", (), said)
    assert ben.problem is None


def test_hidden_files_are_passed_over_and_others_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / ".anne.jsonl", record(1))
    write(tmp_path / "ben.jsonl", record(2))
    (tmp_path / "README.md").write_text("Users.")
    (tmp_path / "carla").mkdir()
    with caplog.at_level(logging.WARNING):
        assert [user.user for user in users_of(tmp_path)] == ["ben"]
    assert "['README.md', 'carla']" in caplog.text
    assert ".anne" not in caplog.text


def test_nothing_to_read_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no <user>.jsonl or <user>.parquet"):
        users_of(tmp_path)
    with pytest.raises(DataError, match="There is no file"):
        users_of(tmp_path / "none")
    for name in ("none.jsonl", "none.parquet"):
        with pytest.raises(DataError, match="There is no file"):
            users_of(tmp_path / name)
    (tmp_path / "all.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="is empty"):
        users_of(tmp_path / "all.jsonl")
    columns = pa.schema([(name, pa.string()) for name in record(user_id="")])
    pq.write_table(columns.empty_table(), tmp_path / "all.parquet")
    with pytest.raises(DataError, match="is empty"):
        users_of(tmp_path / "all.parquet")


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    for name in ("anne", "ben"):
        write(tmp_path / f"{name}.jsonl", record(1))
    users = users_of(tmp_path)
    assert next(users.each).user == "anne"
    (tmp_path / "ben.jsonl").write_text("not JSON")
    assert "not JSON" in str(next(users.each).problem)


@pytest.mark.parametrize("name", ["all.jsonl", "all.parquet"])
def test_users_interleaved_in_one_file_are_put_together(tmp_path: Path, name: str) -> None:
    who = ["ben", "anne", "ben", "carla", "anne", "ben"]
    path = write(tmp_path / name, *(record(n, user_id=user) for n, user in enumerate(who)))
    assert list(users_of(path)) == [
        UserData("anne", (pair(1), pair(4))),
        UserData("ben", (pair(0), pair(2), pair(5))),
        UserData("carla", (pair(3),)),
    ]


@pytest.mark.parametrize(("name", "place"), [("all.jsonl", ":3"), ("all.parquet", ": row 3")])
def test_in_one_file_too_a_users_trouble_is_his_own(tmp_path: Path, name: str, place: str) -> None:
    path = write(
        tmp_path / name,
        record(0, user_id="anne"),
        record(1, user_id="ben"),
        record(2, user_id="anne", rejected="Yes."),
        record(3, user_id="../../etc/carla"),
        record(4, user_id="a/b"),
        record(5, user_id=""),
    )
    found = {user.user: user for user in users_of(path)}
    assert found.pop("ben") == UserData("ben", (pair(1),))
    problem = f"{path}{place}: 'chosen' and 'rejected' are identical"
    assert found.pop("anne") == UserData("anne", (), problem)
    assert set(found) == {"../../etc/carla", "a/b", ""}
    assert all(not user.pairs and "no user name" in str(user.problem) for user in found.values())


@pytest.mark.parametrize("name", ["all.jsonl", "all.parquet"])
def test_numbers_can_be_users_and_conversations_their_pairs(tmp_path: Path, name: str) -> None:
    talk = {
        "chosen": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}],
        "rejected": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "No."}],
    }
    [user] = users_of(write(tmp_path / name, talk | {"user_id": 42}))
    assert user == UserData(
        "42", (PreferencePair(({"role": "user", "content": "Hi?"},), "Yes.", "No."),)
    )


@pytest.mark.parametrize(("name", "place"), [("all.jsonl", ":2"), ("all.parquet", ": row 2")])
def test_a_row_that_is_nobodys_is_refused_at_once(tmp_path: Path, name: str, place: str) -> None:
    path = write(tmp_path / name, record(user_id="anne"), record(user_id=None))
    with pytest.raises(DataError) as caught:
        users_of(path)
    assert str(caught.value).startswith(f"{path}{place}: 'user_id' is missing")
    path = write(tmp_path / name, record(user_id=1.5))
    with pytest.raises(DataError, match="'user_id' must be text or a whole number"):
        users_of(path)


def test_a_file_without_the_column_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no column 'user_id', only 'prompt', 'chosen'"):
        users_of(write(tmp_path / "all.parquet", record()))
    with pytest.raises(DataError, match=r"all.jsonl:1: 'user_id' is missing"):
        users_of(write(tmp_path / "all.jsonl", record()))


def test_a_line_that_is_not_json_could_be_anybodys_and_is_refused_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "all.jsonl", record(user_id="anne"))
    path.write_text(path.read_text() + '{"user_id": "ben", "prompt"')
    with pytest.raises(DataError, match=r"all.jsonl:2: not JSON"):
        users_of(path)


@pytest.mark.parametrize("ended", [True, False])
def test_no_copy_of_the_parquet_file_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    path = write(tmp_path / "all.parquet", *(record(n, user_id=f"u{n}") for n in range(3)))
    users = users_of(path)
    assert list(scratch.iterdir()) == []
    next(users.each)
    assert len(list(scratch.iterdir())) == 1
    if ended:
        assert len(list(users)) == 2
    del users
    assert list(scratch.iterdir()) == []
