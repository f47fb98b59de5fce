"""Preference files: what is read, and what is said of the first line that cannot be."""

import json
from pathlib import Path

import pytest

from training.data import PreferencePair, load_pairs, pairs_digest, save_pairs
from training.errors import DataError

GOOD = '{"prompt": "Hi?", "chosen": "Hello!", "rejected": "No."}'


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def write(folder: Path, *lines: str) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_text_and_messages_and_an_implicit_prompt_are_the_same_pair(tmp_path: Path) -> None:
    messages = {
        "prompt": [user("Hi?")],
        "chosen": [assistant("Hello!")],
        "rejected": [assistant("No.")],
    }
    implicit = {
        "chosen": [user("Hi?"), assistant("Hello!")],
        "rejected": [user("Hi?"), assistant("No.")],
    }
    pairs = load_pairs(write(tmp_path, GOOD, json.dumps(messages), "", json.dumps(implicit)))
    assert [(p.messages, p.chosen, p.rejected) for p in pairs] == [
        ([user("Hi?")], "Hello!", "No.")
    ] * 3


def test_pairs_come_back_as_they_were_saved(tmp_path: Path) -> None:
    talk = (user("Hi?"), assistant("Yes?"), user("Où est-il ?"))
    pairs = [PreferencePair("Hi?", "Hello!", "No."), PreferencePair(talk, "Ici.", "Là.")]
    save_pairs(pairs, tmp_path / "pairs.jsonl")
    assert load_pairs(tmp_path / "pairs.jsonl") == pairs
    assert pairs_digest(load_pairs(tmp_path / "pairs.jsonl")) == pairs_digest(pairs)
    assert pairs_digest(pairs[:1]) != pairs_digest(pairs)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "Hi?", "chosen": ', "not JSON"),
        ("[1, 2]", "a JSON object is needed"),
        ('{"prompt": "Hi?", "chosen": "a"}', "'rejected' is missing"),
        ('{"prompt": "Hi?", "chosen": null, "rejected": "a"}', "'chosen' is missing"),
        ('{"prompt": "Hi?", "chosen": "a", "rejected": "a"}', "identical"),
        (r'{"prompt": "Hi?", "chosen": "\ud83d", "rejected": "a"}', "half a character"),
        (r'{"prompt": "\udc00?", "chosen": "b", "rejected": "a"}', "half a character"),
        ('{"prompt": "Hi?", "chosen": " ", "rejected": "a"}', "'chosen' is empty"),
        ('{"prompt": "", "chosen": "b", "rejected": "a"}', "the prompt is empty"),
        ('{"prompt": 3, "chosen": "b", "rejected": "a"}', "'prompt' must be text"),
        ('{"chosen": "b", "rejected": "a"}', "'prompt' is missing"),
        ('{"prompt": null, "chosen": "b", "rejected": "a"}', "'prompt' is missing"),
        ('{"prompt": [{"role": "user"}], "chosen": "b", "rejected": "a"}', "'role' and 'content'"),
        (
            json.dumps({"prompt": [assistant("a")], "chosen": "b", "rejected": "c"}),
            "nothing is asked",
        ),
        (
            json.dumps({"prompt": "Hi?", "chosen": [user("b")], "rejected": "c"}),
            "exactly one assistant's message",
        ),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = write(tmp_path, GOOD, line)
    with pytest.raises(DataError) as caught:
        load_pairs(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert said in str(caught.value)


def test_whole_emoji_and_other_keys_are_fine(tmp_path: Path) -> None:
    line = r'{"prompt": "\ud83d\ude00?", "chosen": "a", "rejected": "b", "score": null}'
    assert load_pairs(write(tmp_path, line)) == [PreferencePair("😀?", "a", "b")]


def test_bytes_that_are_not_text_are_named_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(GOOD.encode() + b"\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"pairs\.jsonl:2: not UTF-8"):
        load_pairs(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is empty"):
        load_pairs(write(tmp_path, "", ""))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no file"):
        load_pairs(tmp_path / "none.jsonl")
