"""How much an owner may keep: versions, and bytes.

Owns the bounds and the check that a publish makes in its own transaction. Refuses adapters that
nobody owns, which an administrator publishes and which are not bounded. What is retired does not
count; equal content counts once for each version that names it, so that what an owner uses up does
not depend on what others have stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from adapters.audit import log
from adapters.db import EVERYBODY, AdapterRow, QuotaRow, VersionRow, reading, writing
from adapters.errors import InvalidName, NotFound, QuotaExceeded
from adapters.rows import user_row

LARGEST_VERSIONS, LARGEST_BYTES = 2**31 - 1, 2**63 - 1


@dataclass(frozen=True)
class Quota:
    """The bounds of one owner; None is no bound."""

    owner: str
    max_versions: int | None = None
    max_bytes: int | None = None


@dataclass(frozen=True)
class Usage:
    """What an owner has in adapters that are not retired."""

    versions: int
    bytes: int


class Quotas:
    """The owners' bounds; every method is one transaction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def set(
        self,
        owner: str,
        *,
        max_versions: int | None = None,
        max_bytes: int | None = None,
        actor: str = "local",
    ) -> Quota:
        """Bound a user, or "*": everybody without bounds of his own.

        What is above a new bound stays; only the next publish is refused. Raises UserNotFound,
        InvalidName for a bound that is none.
        """
        _check_bound("max_versions", max_versions, LARGEST_VERSIONS)
        _check_bound("max_bytes", max_bytes, LARGEST_BYTES)
        with writing(self._engine) as session:
            if owner != EVERYBODY:
                user_row(session, owner)
            row = session.get(QuotaRow, owner)
            if row is None:
                row = QuotaRow(owner=owner)
                session.add(row)
            row.max_versions, row.max_bytes = max_versions, max_bytes
            bounds = {"max_versions": max_versions, "max_bytes": max_bytes}
            log(session, actor, "quota.set", owner, **bounds)
        return Quota(owner, max_versions, max_bytes)

    def delete(self, owner: str, *, actor: str = "local") -> None:
        """Bound the owner as everybody; "*": bound nobody. Raises NotFound."""
        with writing(self._engine) as session:
            known = owner == EVERYBODY or user_row(session, owner)
            row = session.get(QuotaRow, owner) if known else None
            if row is None:
                raise NotFound(f"'{owner}' has no quota of his own.")
            session.delete(row)
            log(session, actor, "quota.delete", owner)

    def of(self, owner: str) -> tuple[Quota, Usage]:
        """The bounds that hold for this user, and what he has. Raises UserNotFound."""
        with reading(self._engine) as session:
            user_row(session, owner)
            return _quota(session, owner), _usage(session, owner)

    def list(self) -> Sequence[Quota]:
        """Every bound that was set, "*" first."""
        with reading(self._engine) as session:
            rows = session.scalars(select(QuotaRow))
            found = [Quota(row.owner, row.max_versions, row.max_bytes) for row in rows]
        return sorted(found, key=lambda quota: (quota.owner != EVERYBODY, quota.owner))


def check_quota(session: Session, owner: str | None, size: int) -> None:
    """Is there room for one more version of `size` bytes? Raises QuotaExceeded."""
    if owner is None:
        return
    quota = _quota(session, owner)
    if quota.max_versions is None and quota.max_bytes is None:
        return
    usage = _usage(session, owner)
    if quota.max_versions is not None and usage.versions + 1 > quota.max_versions:
        raise QuotaExceeded(
            f"'{owner}' may keep {quota.max_versions} versions and has {usage.versions}: retire an"
            " adapter first."
        )
    if quota.max_bytes is not None and usage.bytes + size > quota.max_bytes:
        raise QuotaExceeded(
            f"'{owner}' may keep {quota.max_bytes} bytes and has {usage.bytes}, so there is no room"
            f" for {size} more: retire an adapter first."
        )


def _quota(session: Session, owner: str) -> Quota:
    row = session.get(QuotaRow, owner) or session.get(QuotaRow, EVERYBODY)
    return Quota(owner) if row is None else Quota(owner, row.max_versions, row.max_bytes)


def _usage(session: Session, owner: str) -> Usage:
    query = (
        select(func.count(), func.coalesce(func.sum(VersionRow.bytes), 0))
        .join(AdapterRow, AdapterRow.id == VersionRow.adapter_id)
        .where(AdapterRow.owner == owner, AdapterRow.retired.is_(None))
    )
    versions, size = session.execute(query).one()
    return Usage(int(versions), int(size))


def _check_bound(name: str, value: int | None, largest: int) -> None:
    if value is not None and not 0 <= value <= largest:
        raise InvalidName(f"{name} must be between 0 and {largest}, or nothing for no bound.")
