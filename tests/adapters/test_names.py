"""Names mean nothing to file systems, URLs or readers of other scripts."""

import pytest

from adapters.errors import InvalidName
from adapters.names import check_adapter_id, check_user_id, parse_ref


@pytest.mark.parametrize("name", ["concise", "alice/concise", "7", "a.b_c-d", "a" * 63])
def test_good_adapter_names(name: str) -> None:
    assert check_adapter_id(name) == name


PATHS = [".", "..", "../x", "/etc", "a/../b", "a..b", "a/", "/a", "a//b", "a/b/c", ".a", "a\\b"]
LOOK_ALIKES = ["Concise", "CONCISE", "cоncise", "concisé", "ａ", "a\u200b"]
CHARACTERS = ["", "-a", "a b", "a\n", "a\0", "a@1", "a:b", "a?b", "a#b", "a%2e", "a" * 64]
TAKEN = ["base", "text", "image", "audio", "pocket"]


@pytest.mark.parametrize("name", [*PATHS, *LOOK_ALIKES, *CHARACTERS, *TAKEN])
def test_bad_adapter_names(name: str) -> None:
    with pytest.raises(InvalidName):
        check_adapter_id(name, reserved={"Pocket"})


@pytest.mark.parametrize("name", ["alice", "ann@site.org", "u-1"])
def test_good_user_names(name: str) -> None:
    assert check_user_id(name) == name


@pytest.mark.parametrize("name", ["", "Alice", "a/b", "a b", "..", "a" * 129, "älice", "a\n"])
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
