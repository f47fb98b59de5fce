"""Which adapters exist, which version of each is active, and who may use it.

Owns publishing, the pointers, grants, assignments and the audit log. Refuses bytes (the store),
checks on them (validation) and identity (accounts). A version is immutable and its engine id is
never given twice; activating, rolling back and assigning move pointers.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, delete, func, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from adapters.accounts import Accounts
from adapters.artifact import read_manifest
from adapters.base import BaseModelInfo
from adapters.db import (
    AdapterRow,
    AuditRow,
    GrantRow,
    UserRow,
    VersionRow,
    connect,
    now,
    reading,
    writing,
)
from adapters.errors import (
    AdapterNotFound,
    AlreadyExists,
    Conflict,
    UserNotFound,
    VersionConflict,
    VersionNotFound,
)
from adapters.migrate import upgrade
from adapters.names import check_adapter_id, is_adapter_id
from adapters.normalise import normalise
from adapters.store import LocalStore
from adapters.validation import Limits, validate

DATABASE_FILE = "registry.sqlite3"
PUBLISH_TRIES = 5


@dataclass(frozen=True)
class AdapterVersion:
    """One version of one adapter, as it is served."""

    adapter_id: str
    version: int
    engine_id: int
    digest: str
    rank: int
    bytes: int
    created: datetime

    @property
    def ref(self) -> str:
        """`alice/concise@3`."""
        return f"{self.adapter_id}@{self.version}"


class Registry:
    """The registry in one database and one store; every method is safe to call from any thread."""

    def __init__(self, engine: Engine, store: LocalStore) -> None:
        self._engine = engine
        self.store = store
        self.accounts = Accounts(engine)

    def close(self) -> None:
        self._engine.dispose()

    # Publishing

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
        idempotency_key: str | None = None,
        reserved: Collection[str] = (),
    ) -> AdapterVersion:
        """Check the adapter in `folder`, bring it to normal form, keep it, give it a version.

        The same `idempotency_key` again answers with the version it made. Raises InvalidName,
        InvalidAdapter, Conflict for a retired name, AlreadyExists for a key used with other
        content, UserNotFound for an unknown owner, StoreError.
        """
        check_adapter_id(adapter_id, reserved)
        limits = limits or Limits()
        validate(folder, base, limits)
        manifest = read_manifest(folder)
        with self.store.scratch() as scratch:
            served = scratch / "served"
            normalise(folder, served)
            # Once more, on the very bytes that will be served: rounding may have emptied them,
            # and whoever owns the folder may have changed it since.
            report = validate(served, base, limits)
            digest = self.store.put(served)
            size = sum(file.stat().st_size for file in served.iterdir())
        if made := self._published_before(adapter_id, idempotency_key, digest):
            return made
        for _ in range(PUBLISH_TRIES):
            row = VersionRow(
                adapter_id=adapter_id,
                digest=digest,
                rank=report.rank,
                bytes=size,
                base_fingerprint=base.fingerprint,
                manifest=manifest and manifest.model_dump(mode="json"),
                idempotency_key=idempotency_key,
            )
            try:
                return self._record(row, owner, actor, activate)
            except IntegrityError:  # another process took the number, or used the key, just now
                if made := self._published_before(adapter_id, idempotency_key, digest):
                    return made
        raise Conflict(f"Too many uploads of '{adapter_id}' at once: try again.")

    def _published_before(
        self, adapter_id: str, key: str | None, digest: str
    ) -> AdapterVersion | None:
        """What this key made already, if anything. Raises AlreadyExists for other content."""
        if not key:
            return None
        with reading(self._engine) as session:
            row = session.scalar(
                select(VersionRow).where(
                    VersionRow.adapter_id == adapter_id, VersionRow.idempotency_key == key
                )
            )
        if row is not None and row.digest != digest:
            raise AlreadyExists(
                f"The idempotency key has made another version of '{adapter_id}': take a new key."
            )
        return None if row is None else _version(row)

    def _record(
        self, row: VersionRow, owner: str | None, actor: str, activate: bool
    ) -> AdapterVersion:
        with writing(self._engine) as session:
            adapter = session.get(AdapterRow, row.adapter_id, with_for_update=True)
            if adapter is None:
                if owner is not None and session.get(UserRow, owner) is None:
                    raise UserNotFound(owner)
                adapter = AdapterRow(id=row.adapter_id, owner=owner, public=False)
                session.add(adapter)
                session.flush()
            if adapter.retired:
                raise Conflict(
                    f"The adapter '{adapter.id}' is retired: publish under another name."
                )
            last = session.scalar(
                select(func.max(VersionRow.version)).where(VersionRow.adapter_id == adapter.id)
            )
            row.version = (last or 0) + 1
            session.add(row)
            session.flush()
            _log(session, actor, "adapter.publish", adapter.id, version=row.version)
            if activate:
                _point(session, adapter, row.version, actor, "adapter.activate")
            return _version(row)

    # Pointers

    def activate(
        self,
        adapter_id: str,
        version: int,
        expected_version: int | None = None,
        *,
        actor: str = "local",
    ) -> AdapterVersion:
        """Make `version` the active one, if `expected_version` (0: none) is active until now.

        Raises AdapterNotFound, VersionNotFound, VersionConflict.
        """
        with writing(self._engine) as session:
            adapter = _living(session, adapter_id)
            active = adapter.active_version or 0
            if expected_version is not None and expected_version != active:
                raise VersionConflict(
                    f"Version {active} of '{adapter_id}' is active, not {expected_version}: "
                    "look again before you switch."
                )
            row = _version_row(session, adapter_id, version)
            if active != version:
                _point(session, adapter, version, actor, "adapter.activate")
            return _version(row)

    def rollback(self, adapter_id: str, *, actor: str = "local") -> AdapterVersion:
        """Back to the version that was active before; once, then `activate` names the next.

        Raises AdapterNotFound, Conflict.
        """
        with writing(self._engine) as session:
            adapter = _living(session, adapter_id)
            if adapter.previous_version is None:
                raise Conflict(f"'{adapter_id}' has no earlier active version to go back to.")
            row = _version_row(session, adapter_id, adapter.previous_version)
            _point(session, adapter, row.version, actor, "adapter.rollback")
            # Not a toggle: a second call must not bring back what the first one took away.
            adapter.previous_version = None
            return _version(row)

    def retire(self, adapter_id: str, *, actor: str = "local") -> None:
        """Take the adapter out of use for good; its name and numbers stay taken."""
        with writing(self._engine) as session:
            adapter = _living(session, adapter_id)
            adapter.retired = now()
            _log(session, actor, "adapter.retire", adapter_id)

    # Who may use what

    def set_grants(
        self, adapter_id: str, *, everyone: bool, users: Collection[str], actor: str = "local"
    ) -> None:
        """Replace who may use the adapter besides its owner.

        Raises AdapterNotFound, UserNotFound.
        """
        with writing(self._engine) as session:
            adapter = _living(session, adapter_id)
            wanted = sorted(set(users))
            for user_id in wanted:
                if session.get(UserRow, user_id) is None:
                    raise UserNotFound(user_id)
            adapter.public = everyone
            session.execute(delete(GrantRow).where(GrantRow.adapter_id == adapter_id))
            session.add_all(GrantRow(adapter_id=adapter_id, user_id=user) for user in wanted)
            _log(session, actor, "adapter.grant", adapter_id, everyone=everyone, users=wanted)

    def assign(self, user_id: str, adapter_id: str | None, *, actor: str = "local") -> None:
        """What the user gets when he names nothing; None is the base."""
        with writing(self._engine) as session:
            user = session.get(UserRow, user_id)
            if user is None:
                raise UserNotFound(user_id)
            if adapter_id is not None:
                _living(session, adapter_id)
            user.assigned = adapter_id
            _log(session, actor, "user.assign", user_id, adapter=adapter_id)

    # Reading

    def resolve(
        self,
        adapter_id: str,
        version: int | None = None,
        *,
        user_id: str | None = None,
        is_admin: bool = False,
    ) -> AdapterVersion:
        """The version that this caller gets for this name; without `version` the active one.

        Raises AdapterNotFound, the same whether it is unknown, retired, inactive or forbidden.
        """
        if not is_adapter_id(adapter_id):
            raise AdapterNotFound(adapter_id)
        with reading(self._engine) as session:
            adapter = session.get(AdapterRow, adapter_id)
            if (
                adapter is None
                or adapter.retired
                or not (is_admin or _may_use(session, adapter, user_id))
            ):
                raise AdapterNotFound(adapter_id)
            wanted = adapter.active_version if version is None else version
            try:
                return _version(_version_row(session, adapter_id, wanted or 0))
            except VersionNotFound:
                raise AdapterNotFound(adapter_id) from None

    def assigned(self, user_id: str) -> AdapterVersion | None:
        """The version assigned to the user, None for the base or an unknown user.

        Raises AdapterNotFound when what is assigned can no longer be used: never the base instead.
        """
        with reading(self._engine) as session:
            adapter_id = session.scalar(select(UserRow.assigned).where(UserRow.id == user_id))
        return (adapter_id and self.resolve(adapter_id, user_id=user_id)) or None

    def usable(self, *, user_id: str | None, is_admin: bool = False) -> Sequence[AdapterVersion]:
        """The active version of every adapter this caller may use, by name."""
        with reading(self._engine) as session:
            query = (
                select(VersionRow)
                .join(AdapterRow, AdapterRow.id == VersionRow.adapter_id)
                .where(AdapterRow.retired.is_(None))
                .where(VersionRow.version == AdapterRow.active_version)
                .order_by(AdapterRow.id)
            )
            if not is_admin:
                granted = select(GrantRow.adapter_id).where(GrantRow.user_id == user_id)
                assigned = select(UserRow.assigned).where(UserRow.id == user_id)
                query = query.where(
                    or_(
                        AdapterRow.public,
                        AdapterRow.owner == user_id,
                        AdapterRow.id.in_(granted),
                        AdapterRow.id.in_(assigned),
                    )
                )
            return [_version(row) for row in session.scalars(query)]

    def list_adapters(self) -> Sequence[dict[str, Any]]:
        """Every adapter that is not retired, for an administrator."""
        with reading(self._engine) as session:
            rows = session.scalars(
                select(AdapterRow).where(AdapterRow.retired.is_(None)).order_by(AdapterRow.id)
            )
            return [_summary(row) for row in rows]

    def describe(self, adapter_id: str) -> dict[str, Any]:
        """An adapter with its versions and grants. Raises AdapterNotFound."""
        with reading(self._engine) as session:
            adapter = _living(session, adapter_id)
            versions = session.scalars(
                select(VersionRow)
                .where(VersionRow.adapter_id == adapter_id)
                .order_by(VersionRow.version)
            )
            users = session.scalars(
                select(GrantRow.user_id)
                .where(GrantRow.adapter_id == adapter_id)
                .order_by(GrantRow.user_id)
            )
            return {
                **_summary(adapter),
                "granted_to": list(users),
                "versions": [
                    {
                        "version": row.version,
                        "digest": row.digest,
                        "rank": row.rank,
                        "bytes": row.bytes,
                        "created": row.created.isoformat(),
                        "manifest": row.manifest,
                    }
                    for row in versions
                ],
            }

    def digests(self) -> Sequence[str]:
        """Every digest that a version names."""
        with reading(self._engine) as session:
            return list(session.scalars(select(VersionRow.digest).distinct()))


def open_registry(data_dir: Path, database_url: str | None = None) -> Registry:
    """The registry in `data_dir`, its database brought up to date. Raises StoreError, OSError."""
    data_dir.mkdir(parents=True, exist_ok=True)
    engine = connect(database_url or f"sqlite:///{data_dir / DATABASE_FILE}")
    upgrade(engine, lock=data_dir / "upgrade.lock")
    return Registry(engine, LocalStore(data_dir / "store"))


def _may_use(session: Session, adapter: AdapterRow, user_id: str | None) -> bool:
    if adapter.public or user_id is None:
        return adapter.public
    granted = session.get(GrantRow, (adapter.id, user_id))
    if adapter.owner == user_id or granted is not None:
        return True
    user = session.get(UserRow, user_id)  # an administrator who assigns it means him to use it
    return user is not None and user.assigned == adapter.id


def _living(session: Session, adapter_id: str) -> AdapterRow:
    known = is_adapter_id(adapter_id)
    adapter = session.get(AdapterRow, adapter_id, with_for_update=True) if known else None
    if adapter is None or adapter.retired:
        raise AdapterNotFound(adapter_id)
    return adapter


def _version_row(session: Session, adapter_id: str, version: int) -> VersionRow:
    query = select(VersionRow).where(
        VersionRow.adapter_id == adapter_id, VersionRow.version == version
    )
    # A number beyond the column's type is not asked for: the driver would stumble over it.
    row = session.scalar(query) if 0 < version < 2**31 else None
    if row is None:
        raise VersionNotFound(f"The adapter '{adapter_id}' has no version {version}.")
    return row


def _point(session: Session, adapter: AdapterRow, version: int, actor: str, action: str) -> None:
    before = adapter.active_version
    adapter.previous_version, adapter.active_version = before, version
    _log(session, actor, action, adapter.id, before=before, after=version)


def _log(session: Session, actor: str, action: str, subject: str, **details: Any) -> None:
    session.add(AuditRow(actor=actor, action=action, subject=subject, details=details))


def _version(row: VersionRow) -> AdapterVersion:
    return AdapterVersion(
        row.adapter_id, row.version, row.engine_id, row.digest, row.rank, row.bytes, row.created
    )


def _summary(row: AdapterRow) -> dict[str, Any]:
    return {
        "adapter": row.id,
        "active_version": row.active_version,
        "owner": row.owner,
        "public": row.public,
        "created": row.created.isoformat(),
    }
