"""How adapters, users and experiments may be called, and how a version is written.

Owns the grammar of identifiers. Refuses lookups: a good name need not exist. Names are
ASCII and lower case only, so no two differ by case, look-alike letters or Unicode form, and
none means something to a file system or a URL.

    adapter id   concise · alice/concise     letters, digits and . _ -, one slash at most
    reference    alice/concise@3             an adapter id, a version from 1
    user id      alice · 7f3c · ann@site.org as a part of an adapter id, and @
    label        tone · warm                 of an experiment or an arm: a part of an adapter id
"""

import re
from collections.abc import Collection
from typing import NamedTuple

from adapters.errors import InvalidName

# Not with a dot at the end, which some file systems take off.
_PART = r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9_-])?"
_ADAPTER_ID = re.compile(rf"{_PART}(/{_PART})?")
_USER_ID = re.compile(r"[a-z0-9](?:[a-z0-9._@-]{0,126}[a-z0-9_@-])?")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")

BASE = "base"
"""How the base model itself is selected."""

# The others are words that engines use for modalities.
RESERVED = frozenset({BASE, "text", "image", "audio"})


class AdapterRef(NamedTuple):
    """An adapter as a caller names it; without a version the active one is meant."""

    adapter_id: str
    version: int | None

    def __str__(self) -> str:
        return self.adapter_id if self.version is None else f"{self.adapter_id}@{self.version}"


def is_adapter_id(text: str) -> bool:
    """Whether an adapter could be called so; what could not be need not be looked up."""
    return _ADAPTER_ID.fullmatch(text) is not None and ".." not in text


def check_adapter_id(adapter_id: str, reserved: Collection[str] = ()) -> str:
    """Return `adapter_id` as it is. Raises InvalidName when it is badly formed or reserved.

    `reserved` adds names to the standing ones, e.g. the served model's; case is ignored.
    """
    if not is_adapter_id(adapter_id):
        raise InvalidName(
            f"{_quoted(adapter_id)} is no adapter name: use lower-case letters, digits, '.', "
            "'_' and '-', begin with a letter or digit, do not end with a '.', and put at most one "
            "'/' between two parts."
        )
    if adapter_id in RESERVED or adapter_id in {name.lower() for name in reserved}:
        raise InvalidName(f"The name '{adapter_id}' is reserved: choose another for the adapter.")
    return adapter_id


def check_user_id(user_id: str) -> str:
    """Return `user_id` as it is. Raises InvalidName."""
    if not _USER_ID.fullmatch(user_id) or ".." in user_id:
        raise InvalidName(
            f"{_quoted(user_id)} is no user name: use at most 128 lower-case letters, digits, "
            "'.', '_', '-' and '@', begin with a letter or digit, and do not end with a '.'."
        )
    return user_id


def is_label(text: str) -> bool:
    """Whether an experiment, or an arm of one, could be called so."""
    return re.fullmatch(_PART, text) is not None and ".." not in text


def check_label(text: str) -> str:
    """Return the name of an experiment or an arm as it is. Raises InvalidName."""
    if not is_label(text):
        raise InvalidName(
            f"{_quoted(text)} is no name for an experiment or an arm: use at most 63 lower-case"
            " letters, digits, '.', '_' and '-', begin with a letter or digit, and do not end with"
            " a '.'."
        )
    return text


def parse_ref(text: str) -> AdapterRef:
    """Read `<adapter>[@version]`. Raises InvalidName."""
    adapter_id, at, version = text.partition("@")
    if at and not _VERSION.fullmatch(version):
        raise InvalidName(f"{_quoted(text)} has no version number after the '@', e.g. concise@3.")
    return AdapterRef(check_adapter_id(adapter_id), int(version) if at else None)


def _quoted(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:80] + "…")
