"""An adapter as a folder: three files, and what the third one says.

Owns the layout, `manifest.json` and the digest. Refuses to judge weights; validation does.
The digest covers the two files that decide tokens. The manifest tells where they came from
and is kept beside a version, not in it, so equal adapters have equal digests.
"""

import hashlib
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from adapters.errors import InvalidAdapter
from adapters.files import (
    as_store_error,
    open_regular,
    read_regular,
    sync_folder,
    write_durably,
)
from adapters.pace import give_way
from adapters.strictjson import Malformed, parse_object
from adapters.verdict import Verdict

CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE = ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "manifest.json",
)
SERVED_FILES = (CONFIG_FILE, WEIGHTS_FILE)
# PEFT writes a model card beside every adapter it saves; it is neither checked nor kept.
HISTORY_FILE = "training_history.json"
"""The figures of every training step, for reports; it stays where the adapter was trained."""
IGNORED_FILES = ("README.md", HISTORY_FILE)
MAX_MANIFEST_BYTES = 2**20
_CHUNK = 2**20


class BaseReference(BaseModel):
    """The base model an adapter was trained on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(max_length=512)
    fingerprint: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    assumed: bool = False
    """Whether that base was only taken for granted, because the adapter came without a word."""


class Manifest(BaseModel):
    """Where an adapter comes from; `manifest.json` in its folder.

    Version 2 added `base.assumed` and `producer`, version 3 `verdict`; older ones are read as they
    were.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    schema_version: Literal[1, 2, 3] = 3
    name: str = Field(max_length=512)
    base: BaseReference
    method: str = Field(max_length=128)
    producer: str | None = Field(None, max_length=128)
    """What trained it, where it was made elsewhere."""
    hyperparameters: dict[str, Any] = {}
    data: dict[str, Any] = {}
    """Hash and counts of what it was trained on; never the data."""
    metrics: dict[str, float] = {}
    versions: dict[str, str] = {}
    seed: int | None = None
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    verdict: Verdict | None = None
    """What a gate said of it; `adapters/gate.py` says whose word counts."""

    @field_validator("created")
    @classmethod
    def _in_utc(cls, created: datetime) -> datetime:
        try:
            return created.astimezone(UTC)
        except OverflowError:
            raise ValueError("is outside the years that can be told in UTC") from None


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of an adapter folder, None where there is none.

    The folder is untrusted. Raises InvalidAdapter.
    """
    path = folder / MANIFEST_FILE
    if not os.path.lexists(path):
        return None
    try:
        content = parse_object(
            read_regular(path, max_bytes=MAX_MANIFEST_BYTES), max_bytes=MAX_MANIFEST_BYTES
        )
        return Manifest.model_validate(content)
    except Malformed as error:
        raise InvalidAdapter([f"{MANIFEST_FILE} {error}"]) from None
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        problems = [f"{MANIFEST_FILE}: {_field(e['loc'])}: {e['msg']}" for e in found]
        raise InvalidAdapter(problems) from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write (or replace, whole) the manifest of an adapter folder. Raises StoreError."""
    text = manifest.model_dump_json(indent=2) + "\n"
    draft = folder / f".{MANIFEST_FILE}.{secrets.token_hex(4)}"
    write_durably(draft, [text.encode()])
    try:
        draft.replace(folder / MANIFEST_FILE)
        sync_folder(folder)
    except OSError as error:
        raise as_store_error(error, folder / MANIFEST_FILE) from error


def artifact_digest(folder: Path) -> str:
    """`sha256:…` over the names, lengths and bytes of the two files that are served.

    Raises InvalidAdapter where one is missing, no regular file, or cannot be read.
    """
    digest = hashlib.sha256()
    for name in SERVED_FILES:
        try:
            file, size = open_regular(folder / name)
            with file:
                digest.update(f"{name} {size}\n".encode())
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
                    give_way()
        except Malformed as error:
            raise InvalidAdapter([f"{name} {error}"]) from None
        except OSError as error:  # a bad sector, a lost mount
            raise InvalidAdapter([f"{name} cannot be read ({error.strerror})"]) from None
    return f"sha256:{digest.hexdigest()}"


def _field(location: tuple[int | str, ...]) -> str:
    """Where in the manifest; its keys are a stranger's, so they are shown as they are quoted."""
    path = ".".join(str(part) for part in location) or "its content"
    return path if path.isprintable() and len(path) <= 80 else repr(path[:80])
