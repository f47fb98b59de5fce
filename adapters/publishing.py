"""Publishing: from a stranger's folder to a version that can be served, or to nothing at all.

Owns the order of the steps: check, bring to normal form, check again, keep the bytes, and then one
transaction that gives a number. Refuses the checks themselves and where bytes lie. Bytes come
first, so a version never lacks them; a publish that stops half-way leaves bytes that no version
names, which `collection.py` removes.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from adapters.artifact import read_manifest
from adapters.audit import log
from adapters.base import BaseModelInfo
from adapters.db import AdapterRow, VersionRow, reading, writing
from adapters.errors import AlreadyExists, Conflict, InvalidAdapter, InvalidName
from adapters.gate import Gate
from adapters.limits import Limits, ValidationReport
from adapters.names import check_adapter_id
from adapters.normalise import normalise
from adapters.pointers import past_the_gate, point
from adapters.provenance import derive_manifest
from adapters.quotas import check_quota
from adapters.rows import living_adapter, user_row
from adapters.store import Store
from adapters.validation import validate, validate_form
from adapters.versions import AdapterVersion, version_of

LONGEST_KEY = 255


@dataclass(frozen=True)
class Upload:
    """What is asked for, and what was found in the folder."""

    adapter_id: str
    owner: str | None
    idempotency_key: str | None
    rank: int
    bytes: int
    base_fingerprint: str
    manifest: dict[str, Any]


class Publishing:
    """The registry's part that makes versions."""

    def __init__(self, engine: Engine, store: Store, gate: Gate | None = None) -> None:
        self.engine = engine
        self.store = store
        self.gate = gate

    def publish(
        self,
        adapter_id: str,
        folder: Path,
        *,
        base: BaseModelInfo,
        limits: Limits | None = None,
        owner: str | None = None,
        actor: str = "local",
        activate: bool = False,
        force: bool = False,
        idempotency_key: str | None = None,
        reserved: Collection[str] = (),
    ) -> AdapterVersion:
        """Check the adapter in `folder`, bring it to normal form, keep it, give it a version.

        With `activate`, what the gate refuses is not published either, unless `force`d. The same
        `idempotency_key` again answers with the version it made. Raises GateRefused, InvalidName,
        InvalidAdapter, Conflict for a retired name or another's adapter, QuotaExceeded,
        AlreadyExists for a key used with other content, UserNotFound for an unknown owner,
        StoreError.
        """
        check_adapter_id(adapter_id, reserved)
        _check_key(idempotency_key)
        limits = limits or Limits()
        with self.store.scratch() as scratch:
            served = scratch / "served"
            report = _served_form(folder, served, base, limits)
            manifest = read_manifest(folder) or derive_manifest(folder, base, report, adapter_id)
            upload = Upload(
                adapter_id,
                owner,
                idempotency_key,
                report.rank,
                sum(file.stat().st_size for file in served.iterdir()),
                base.fingerprint,
                manifest.model_dump(mode="json"),
            )
            with reading(self.engine) as session:  # so that who has no room fills no disk
                _made_before(session, upload) or _admitted(session, upload)
            digest = self.store.put(served)
            with writing(self.engine) as session:
                if row := _made_before(session, upload):
                    return _same(row, digest)
                # Nobody named these bytes until now, so a collection may have taken them.
                if not self.store.holds(digest):
                    self.store.put(served)
                row = _record(session, upload, digest, actor)
                if activate:
                    forced = past_the_gate(self.gate, row, force=force)
                    point(
                        session, living_adapter(session, adapter_id), row.version, actor, **forced
                    )
                return version_of(row)


def _served_form(
    folder: Path, served: Path, base: BaseModelInfo, limits: Limits
) -> ValidationReport:
    """Write the served form of `folder` to the new folder `served`, and check it there.

    The numbers are looked at once, in the very bytes that will be served: rounding may have emptied
    them, and whoever owns the folder may change it meanwhile. Only where they are refused they are
    looked at in what was sent, so that the words are about that.
    """
    validate_form(folder, base, limits)
    try:
        normalise(folder, served)
        return validate(served, base, limits)
    except InvalidAdapter:
        validate(folder, base, limits)
        raise


def _check_key(key: str | None) -> None:
    if key is not None and not (len(key) <= LONGEST_KEY and key.isprintable()):
        raise InvalidName(
            f"The idempotency key must have at most {LONGEST_KEY} characters, printable ones."
        )


def _made_before(session: Session, upload: Upload) -> VersionRow | None:
    """The version that this idempotency key has made, if any."""
    if not upload.idempotency_key:
        return None
    return session.scalar(
        select(VersionRow).where(
            VersionRow.adapter_id == upload.adapter_id,
            VersionRow.idempotency_key == upload.idempotency_key,
        )
    )


def _same(row: VersionRow, digest: str) -> AdapterVersion:
    if row.digest != digest:
        raise AlreadyExists(
            f"The idempotency key has made another version of '{row.adapter_id}': take a new key."
        )
    return version_of(row)


def _admitted(session: Session, upload: Upload) -> AdapterRow | None:
    """The adapter that gets the version, None for a new one. Raises what refuses it."""
    adapter = session.get(AdapterRow, upload.adapter_id)
    if adapter is None:
        if upload.owner is not None:
            user_row(session, upload.owner)
        check_quota(session, upload.owner, upload.bytes)
        return None
    if adapter.retired:
        raise Conflict(f"The adapter '{adapter.id}' is retired: publish under another name.")
    if upload.owner not in (None, adapter.owner):
        raise Conflict(
            f"The adapter '{adapter.id}' is there and does not belong to '{upload.owner}': its"
            " first version decided that."
        )
    check_quota(session, adapter.owner, upload.bytes)
    return adapter


def _record(session: Session, upload: Upload, digest: str, actor: str) -> VersionRow:
    adapter = _admitted(session, upload)
    if adapter is None:
        adapter = AdapterRow(id=upload.adapter_id, owner=upload.owner, public=False)
        session.add(adapter)
        session.flush()
    last = session.scalar(
        select(func.max(VersionRow.version)).where(VersionRow.adapter_id == adapter.id)
    )
    row = VersionRow(
        adapter_id=adapter.id,
        version=(last or 0) + 1,
        digest=digest,
        rank=upload.rank,
        bytes=upload.bytes,
        base_fingerprint=upload.base_fingerprint,
        manifest=upload.manifest,
        idempotency_key=upload.idempotency_key or None,
    )
    session.add(row)
    session.flush()
    log(session, actor, "adapter.publish", adapter.id, version=row.version, digest=digest)
    return row
