"""Pairs from Parquet, saved data sets and the Hub, and what is said of bad ones."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from datasets import Dataset, DatasetDict

from training.data import PreferencePair, load_pairs
from training.errors import DataError
from training.sources import read_jsonl, read_records

GOOD = {"prompt": "Hi?", "chosen": "Hello!", "rejected": "No."}
PAIR = PreferencePair("Hi?", "Hello!", "No.")


def parquet(folder: Path, *records: dict[str, Any], name: str = "pairs.parquet") -> Path:
    path = folder / name
    pq.write_table(pa.Table.from_pylist(list(records)), path)
    return path


def refusal(source: str | Path) -> str:
    with pytest.raises(DataError) as caught:
        load_pairs(source)
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_a_parquet_file_reads_as_the_same_pairs_as_jsonl(tmp_path: Path) -> None:
    records = [GOOD, GOOD | {"prompt": "Où est-il ?"}]
    lines = tmp_path / "pairs.jsonl"
    lines.write_text("".join(json.dumps(r) + "\n" for r in records))
    assert load_pairs(parquet(tmp_path, *records)) == load_pairs(lines)
    assert load_pairs(str(parquet(tmp_path, *records, name="PAIRS.PARQUET"))) == load_pairs(lines)


def test_messages_and_an_implicit_prompt_come_out_of_parquet(tmp_path: Path) -> None:
    def turns(*contents: str) -> list[dict[str, Any]]:
        roles = ["user", "assistant"] * len(contents)
        # A key that is null in every message, as `datasets` writes what some records lack.
        return [
            {"role": r, "content": c, "tool": None} for r, c in zip(roles, contents, strict=False)
        ]

    said = {"chosen": [turns("", "Hello!")[1]], "rejected": [turns("", "No.")[1]]}
    explicit = parquet(tmp_path, {"prompt": turns("Hi?"), **said}, name="explicit.parquet")
    implicit = parquet(
        tmp_path,
        {"prompt": None, "chosen": turns("Hi?", "Hello!"), "rejected": turns("Hi?", "No.")},
        name="implicit.parquet",
    )
    expected = PreferencePair(({"role": "user", "content": "Hi?"},), "Hello!", "No.")
    assert load_pairs(explicit) == load_pairs(implicit) == [expected]


def test_other_columns_are_not_read(tmp_path: Path) -> None:
    path = parquet(tmp_path, GOOD | {"score": 3.0, "user_id": "alice"})
    assert load_pairs(path) == [PAIR]
    [(where, record)] = read_records(path, ["prompt", "nonsense"])
    assert (where, record) == (f"{path}: row 1", {"prompt": "Hi?"})


def test_rows_are_counted_past_one_batch(tmp_path: Path) -> None:
    many = [GOOD | {"prompt": str(n)} for n in range(1300)]
    path = parquet(tmp_path, *many, GOOD | {"chosen": " "})
    assert refusal(path) == f"{path}: row 1301: 'chosen' is empty"
    assert len(load_pairs(parquet(tmp_path, *many))) == 1300


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"chosen": None}, "'chosen' is missing"),
        ({"prompt": None}, "'prompt' is missing"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"rejected": "Hello!"}, "'chosen' and 'rejected' are identical"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, broken: dict[str, Any], said: str) -> None:
    path = parquet(tmp_path, GOOD, GOOD | broken)
    assert refusal(path).startswith(f"{path}: row 2: {said}")


def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    path = parquet(tmp_path, {"question": "Hi?", "chosen": "Hello!"})
    said = f"{path} has no column 'rejected', only 'question', 'chosen'; rename or add it."
    assert refusal(path) == said
    wide = parquet(tmp_path, {f"column{n}": n for n in range(500)})
    assert refusal(wide).endswith("'column11', 488 more; rename or add it.")


def test_files_that_are_no_parquet_are_refused_in_a_sentence(tmp_path: Path) -> None:
    for content in (b"", b"PAR1", b"PAR1 and then something else PAR1"):
        path = tmp_path / "pairs.parquet"
        path.write_bytes(content)
        assert refusal(path).startswith(f"{path} cannot be read as Parquet: ")


def test_parquet_that_is_damaged_in_the_middle_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    table = pa.Table.from_pylist([GOOD | {"prompt": str(n)} for n in range(5000)])
    pq.write_table(table, path, write_page_checksum=False, compression="zstd")
    content = bytearray(path.read_bytes())
    content[200:4000] = bytes(3800)
    path.write_bytes(content)
    assert refusal(path).startswith(f"{path} cannot be read as Parquet: ")


def test_text_that_is_no_utf8_in_parquet_is_refused_in_a_sentence(tmp_path: Path) -> None:
    offsets, data = pa.py_buffer(bytes([0, 0, 0, 0, 2, 0, 0, 0])), pa.py_buffer(b"\xff\xfe")
    text = pa.StringArray.from_buffers(1, offsets, data)
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"prompt": text, "chosen": ["a"], "rejected": ["b"]}), path)
    assert "codec can't decode" in refusal(path)


def test_parquet_without_rows_is_empty(tmp_path: Path) -> None:
    columns = pa.schema([(name, pa.string()) for name in GOOD])
    pq.write_table(columns.empty_table(), tmp_path / "pairs.parquet")
    assert "is empty" in refusal(tmp_path / "pairs.parquet")


def test_a_saved_data_set_is_read_and_its_rows_are_named(tmp_path: Path) -> None:
    Dataset.from_list([GOOD | {"extra": 1}]).save_to_disk(tmp_path / "good")
    assert load_pairs(tmp_path / "good") == [PAIR]
    Dataset.from_list([GOOD, GOOD | {"chosen": ""}]).save_to_disk(tmp_path / "bad")
    assert refusal(tmp_path / "bad") == f"{tmp_path / 'bad'}: row 2: 'chosen' is empty"
    Dataset.from_list([{"text": "Hi."}]).save_to_disk(tmp_path / "other")
    assert "has no column 'chosen', only 'text'" in refusal(tmp_path / "other")


def test_of_a_saved_data_set_with_splits_train_is_read(tmp_path: Path) -> None:
    one, two = Dataset.from_list([GOOD]), Dataset.from_list([GOOD, GOOD])
    DatasetDict({"train": one, "test": two}).save_to_disk(tmp_path / "both")
    assert len(load_pairs(tmp_path / "both")) == 1
    assert len(load_pairs(tmp_path / "both" / "test")) == 2
    DatasetDict({"dev": one, "test": two}).save_to_disk(tmp_path / "none")
    assert "has no split 'train'; give one of its folders 'dev', 'test'" in refusal(
        tmp_path / "none"
    )


def test_other_folders_and_broken_data_sets_are_refused_in_a_sentence(tmp_path: Path) -> None:
    said = f"{tmp_path} cannot be read as a folder written by save_to_disk: "
    assert refusal(tmp_path).startswith(said)
    Dataset.from_list([GOOD]).save_to_disk(tmp_path / "cut")
    [data] = (tmp_path / "cut").glob("*.arrow")
    data.write_bytes(data.read_bytes()[:100])
    assert "cannot be read as a folder written by save_to_disk: " in refusal(tmp_path / "cut")
    (tmp_path / "cut" / "state.json").write_text("{")
    assert "cannot be read as a folder written by save_to_disk: " in refusal(tmp_path / "cut")


@pytest.mark.parametrize(
    "name", ["owner/name", "owner/name:test", "owner/name/config:train[:5]", "data/pairs"]
)
def test_a_hub_that_cannot_be_reached_is_said_in_a_sentence(name: str) -> None:
    said = refusal(name)
    assert said.startswith(f"There is no file or folder {name}, and no such data set can be had")
    assert "Couldn't reach" in said


def test_what_can_only_be_a_file_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "pairs").mkdir(parents=True)
    for source in ("data/pairs.jsonl", "pairs", "./data/other", "data/pairs/anne", "a/b/c/d"):
        assert refusal(source) == f"There is no file {Path(source)}."
    assert refusal(Path("owner/name")) == "There is no file owner/name."
    assert refusal("data/none.parquet") == "There is no file data/none.parquet."


def keep_as_downloaded(cache: Path, name: str, config: str, **splits: int) -> None:
    """Leave a data set of so many pairs where `datasets` keeps what it had from the Hub."""
    folder = cache / f"owner___{name}" / config / "0.0.0" / ("0" * 40)
    folder.mkdir(parents=True)
    for split, size in splits.items():
        Dataset.from_list([GOOD] * size).save_to_disk(folder)
        (folder / "data-00000-of-00001.arrow").rename(folder / f"{name}-{split}.arrow")
    known = {split: {"name": split, "num_examples": size} for split, size in splits.items()}
    info = json.loads((folder / "dataset_info.json").read_text())
    info |= {"config_name": config, "dataset_name": name, "version": "0.0.0", "splits": known}
    (folder / "dataset_info.json").write_text(json.dumps(info))


def test_a_data_set_of_the_hub_is_read_by_split_and_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, the Hub's client serves what it downloaded before."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path))
    keep_as_downloaded(tmp_path, "pairs", "default", train=3, test=2)
    assert load_pairs("owner/pairs") == [PAIR] * 3
    assert load_pairs("owner/pairs:test") == [PAIR] * 2
    assert load_pairs("owner/pairs:train[:1]") == [PAIR]
    assert "Unknown split" in refusal("owner/pairs:dev")
    keep_as_downloaded(tmp_path, "several", "english", train=1)
    keep_as_downloaded(tmp_path, "several", "french", train=4, test=5)
    assert load_pairs("owner/several/french:test") == [PAIR] * 5
    assert "'english'" in refusal("owner/several/german")
    [(where, _)] = read_records("owner/several/english", ["prompt"])
    assert where == "owner/several/english: row 1"


def test_hostile_json_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    for line in ('{"prompt": ' + "[" * 100_000, '{"prompt": ' + "1" * 5000 + "}"):
        path.write_text(line)
        assert refusal(path) == f"{path}:1: JSON that is too deep or has too long a number"


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder; a file is needed"):
        next(read_jsonl(tmp_path))


def test_importing_loads_neither_arrow_nor_datasets() -> None:
    program = (
        "import sys, training.data, training.sources, training.users;"
        "print(sorted({'datasets', 'pyarrow', 'torch', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]", done.stderr
