"""Names mean nothing to file systems, URLs or readers of other scripts."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import InvalidName
from adapters.names import check_adapter_id, check_user_id, is_adapter_id, parse_ref


@pytest.mark.parametrize("name", ["concise", "alice/concise", "7", "a.b_c-d", "a" * 63])
def test_good_adapter_names(name: str) -> None:
    assert check_adapter_id(name) == name


PATHS = [
    ".",
    "..",
    "../x",
    "/etc",
    "a/../b",
    "a..b",
    "a/",
    "/a",
    "a//b",
    "a/b/c",
    ".a",
    "a\\b",
    "a.",
]
LOOK_ALIKES = ["Concise", "CONCISE", "cоncise", "concisé", "ａ", "a\u200b"]
CHARACTERS = ["", "-a", "a b", "a\n", "a\0", "a@1", "a:b", "a?b", "a#b", "a%2e", "a" * 64]
TAKEN = ["base", "text", "image", "audio", "pocket", "meta-llama/llama-3.1-8b"]
# As they would be typed to get round a plain comparison.
DISGUISED = [
    changed
    for name in TAKEN
    for changed in (
        f"{name}\n", f" {name}", f"{name} ", f"{name}.", f"{name}/", f"{name}\0", f"{name}\u200b",
        name.upper(), name.title(), name.replace("a", "а"), name.replace("e", "е"), f"{name}@1",
    )
    if changed not in ("text", "image", "base", "audio", "pocket")
]  # fmt: skip


@pytest.mark.parametrize("name", [*PATHS, *LOOK_ALIKES, *CHARACTERS, *TAKEN, *DISGUISED])
def test_bad_adapter_names(name: str) -> None:
    with pytest.raises(InvalidName):
        check_adapter_id(name, reserved={"Pocket", "meta-llama/Llama-3.1-8B"})


@given(st.lists(st.text(alphabet="aAbB0._-/@ é\n", min_size=1, max_size=6), min_size=2))
def test_two_good_names_never_share_a_file_name(names: list[str]) -> None:
    """Not on file systems that ignore case, Unicode's forms, or dots and spaces at the end."""
    good = {name for name in names if is_adapter_id(name)}
    files = {unicodedata.normalize("NFKC", name).casefold().rstrip(". ") for name in good}
    assert len(files) == len(good)


@pytest.mark.parametrize("name", ["alice", "ann@site.org", "u-1"])
def test_good_user_names(name: str) -> None:
    assert check_user_id(name) == name


@pytest.mark.parametrize("name", ["", "Alice", "a/b", "a b", "..", "a" * 129, "älice", "a\n", "a."])
def test_bad_user_names(name: str) -> None:
    with pytest.raises(InvalidName):
        check_user_id(name)


def test_references() -> None:
    assert parse_ref("alice/concise@3") == ("alice/concise", 3)
    assert parse_ref("concise") == ("concise", None)


@pytest.mark.parametrize("text", ["a@", "a@0", "a@-1", "a@1@2", "a@x", "a@²", "a@1_0", "@1"])
def test_bad_references(text: str) -> None:
    with pytest.raises(InvalidName):
        parse_ref(text)
