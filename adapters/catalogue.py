"""Reading the registry: which version a caller gets, what he may use, what there is.

Owns every question that changes nothing. Refuses to tell the unknown from the forbidden: names
cannot be probed. Each answer is of one moment of the database.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine, Select, select

from adapters.access import may_use
from adapters.audit import AuditEntry, audit_log
from adapters.db import AdapterRow, GrantRow, GroupGrantRow, UserRow, VersionRow, reading
from adapters.errors import AdapterNotFound
from adapters.experiments import read_experiments
from adapters.names import is_adapter_id
from adapters.rows import LARGEST_VERSION, is_user_id, living_adapter
from adapters.versions import AdapterVersion, Choice, version_of


class Catalogue:
    """The registry's part that answers questions."""

    engine: Engine

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
        if not is_adapter_id(adapter_id) or not 0 < (version or 1) <= LARGEST_VERSION:
            raise AdapterNotFound(adapter_id)
        wanted = AdapterRow.active_version if version is None else version
        query = _visible(user_id, is_admin).where(
            AdapterRow.id == adapter_id, VersionRow.version == wanted
        )
        with reading(self.engine) as session:
            row = session.scalar(query)
        if row is None:
            raise AdapterNotFound(adapter_id)
        return version_of(row)

    def assigned(self, user_id: str) -> Choice:
        """What the user gets when he names nothing; the base where he is unknown.

        An arm's adapter needs no grant, and gives none. Raises AdapterNotFound when what is
        assigned, or his arm, can no longer be used: never the base, or another arm, instead.
        """
        if not is_user_id(user_id):
            return Choice(None)
        with reading(self.engine) as session:
            user = session.get(UserRow, user_id)
            found = read_experiments(session, [user.experiment]) if user and user.experiment else {}
        if user is None:
            return Choice(None)
        for experiment in found.values():
            if arm := experiment.arm_of(user_id):
                label = experiment.label(arm)
                if arm.adapter_id is None:
                    return Choice(None, label)
                return Choice(self.resolve(arm.adapter_id, arm.version, is_admin=True), label)
        if user.assigned is None:
            return Choice(None)
        return Choice(self.resolve(user.assigned, user_id=user_id))

    def usable(self, *, user_id: str | None, is_admin: bool = False) -> Sequence[AdapterVersion]:
        """The active version of every adapter this caller may use, by name."""
        query = _visible(user_id, is_admin).where(VersionRow.version == AdapterRow.active_version)
        with reading(self.engine) as session:
            return [version_of(row) for row in session.scalars(query.order_by(AdapterRow.id))]

    def list_adapters(
        self, after: str | None = None, limit: int | None = None
    ) -> Sequence[dict[str, Any]]:
        """Adapters that are not retired, by name, for an administrator: all, or a page of them.

        `after` the last name of one page begins the next page.
        """
        query = select(AdapterRow).where(AdapterRow.retired.is_(None))
        query = query.order_by(AdapterRow.id).limit(limit)
        if after is not None and after.isprintable():
            query = query.where(AdapterRow.id > after)
        with reading(self.engine) as session:
            return [_summary(row) for row in session.scalars(query)]

    def describe(self, adapter_id: str) -> dict[str, Any]:
        """An adapter with its versions and grants. Raises AdapterNotFound."""
        versions = (
            select(VersionRow)
            .where(VersionRow.adapter_id == adapter_id)
            .order_by(VersionRow.version)
        )
        users = select(GrantRow.user_id).where(GrantRow.adapter_id == adapter_id)
        groups = select(GroupGrantRow.group_id).where(GroupGrantRow.adapter_id == adapter_id)
        with reading(self.engine) as session:
            return {
                **_summary(living_adapter(session, adapter_id)),
                "granted_to": list(session.scalars(users.order_by(GrantRow.user_id))),
                "granted_to_groups": list(session.scalars(groups.order_by(GroupGrantRow.group_id))),
                "versions": [_listed(row) for row in session.scalars(versions)],
            }

    def digests(self) -> Sequence[str]:
        """Every digest that a version of a living adapter names; the store must have these."""
        with reading(self.engine) as session:
            return list(session.scalars(living_digests().order_by(VersionRow.digest)))

    def audit(
        self, subject: str | None = None, after: int | None = None, limit: int = 100
    ) -> Sequence[AuditEntry]:
        """The changes, newest first: of one `subject` (an adapter, a user, a key …) or of all.

        `after` the id of the last entry of one page begins the next page.
        """
        return audit_log(self.engine, subject, after, limit)


def living_digests() -> Select[str]:
    """What the versions of adapters that are not retired name, each once."""
    living = select(AdapterRow.id).where(AdapterRow.retired.is_(None))
    return select(VersionRow.digest).where(VersionRow.adapter_id.in_(living)).distinct()


def _visible(user_id: str | None, is_admin: bool) -> Select[VersionRow]:
    """The versions of living adapters that the caller may use."""
    query = (
        select(VersionRow)
        .join(AdapterRow, AdapterRow.id == VersionRow.adapter_id)
        .where(AdapterRow.retired.is_(None))
    )
    return query if is_admin else query.where(may_use(user_id))


def _summary(row: AdapterRow) -> dict[str, Any]:
    return {
        "adapter": row.id,
        "active_version": row.active_version,
        "owner": row.owner,
        "public": row.public,
        "created": row.created.isoformat(),
    }


def _listed(row: VersionRow) -> dict[str, Any]:
    return {
        "version": row.version,
        "digest": row.digest,
        "rank": row.rank,
        "bytes": row.bytes,
        "created": row.created.isoformat(),
        "manifest": row.manifest,
    }
