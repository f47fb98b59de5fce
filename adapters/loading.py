"""From the registry's rows to a snapshot: everything at once, or what the audit log names since.

Owns the queries of the in-memory view. Refuses threads and waiting (`view.py`). What is read in one
session is of one moment of the database, and nothing is put into a snapshot before all of it has
been read, so a database that fails in the middle changes nothing.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select, and_, func, select, true
from sqlalchemy.orm import InstrumentedAttribute, Session

from adapters.accounts import Role
from adapters.allowances import allowance_of
from adapters.db import (
    AdapterRow,
    AllowanceRow,
    ArmRow,
    AuditRow,
    GrantRow,
    GroupGrantRow,
    KeyRow,
    MemberRow,
    UserRow,
    VersionRow,
)
from adapters.experiments import read_experiments
from adapters.snapshot import Adapter, Key, Snapshot, Trial, User, compact
from adapters.versions import AdapterVersion, version_of

T = TypeVar("T")

MOST_CHANGES = 500
"""Beyond as many lines of the log, or users to read again, reading everything is quicker."""

Changed = Mapping[str, Collection[str]]
"""The names that lines of the audit log say have changed, under "adapter", "user" and so on."""

_intern = sys.intern  # a user's name stands in several entries: keep it once


@dataclass(frozen=True, slots=True)
class Revision:
    """The newest line of the audit log that was read: its id, and its time to know it again by."""

    id: int
    at: datetime | None


@dataclass(frozen=True, slots=True)
class Patch:
    """Entries to replace; None is an entry to take out."""

    adapters: Mapping[str, Adapter | None]
    users: Mapping[str, User | None]
    keys: Mapping[str, Key | None]
    trials: Mapping[str, Trial | None]

    def apply(self, snapshot: Snapshot) -> None:
        # What a key opens is in place before the key, and shut before anything goes.
        for key_id, key in self.keys.items():
            if key is None:
                snapshot.put_key(key_id, None)
        for experiment_id, trial in self.trials.items():
            snapshot.put_trial(experiment_id, trial)
        for user_id, user in self.users.items():
            snapshot.put_user(user_id, user)
        for adapter_id, adapter in self.adapters.items():
            snapshot.put_adapter(adapter_id, adapter)
        for key_id, key in self.keys.items():
            snapshot.put_key(key_id, key)


def read_revision(session: Session) -> Revision:
    """The registry's present revision; 0 before the first change."""
    query = select(AuditRow.id, AuditRow.at).order_by(AuditRow.id.desc()).limit(1)
    row = session.execute(query).one_or_none()
    return Revision(0, None) if row is None else Revision(row.id, row.at)


def read_changes(session: Session, since: Revision) -> tuple[Revision, Changed] | None:
    """What has changed since, in one query.

    None: too much, or the log is another one than before (a backup was put back).
    """
    query = (
        select(AuditRow.id, AuditRow.at, AuditRow.action, AuditRow.subject)
        .where(AuditRow.id >= since.id)
        .order_by(AuditRow.id)
        .limit(MOST_CHANGES + 2)
    )
    rows = session.execute(query).all()
    if since.id:
        if not rows or (rows[0].id, rows[0].at) != (since.id, since.at):
            return None
        rows = rows[1:]
    if len(rows) > MOST_CHANGES:
        return None
    changed = defaultdict(set)
    for row in rows:
        changed[row.action.partition(".")[0]].add(row.subject)
    return (Revision(rows[-1].id, rows[-1].at) if rows else since), changed


def read_all(session: Session) -> Snapshot:
    """Everything there is."""
    snapshot = Snapshot()
    everything = _adapters(session), _users(session), _keys(session), _trials(session)
    Patch(*everything).apply(snapshot)
    return snapshot


def read_patch(session: Session, snapshot: Snapshot, changed: Changed) -> Patch | None:
    """What is to be replaced in the snapshot; None where that is too much."""
    joined_or_left = _joined_or_left(session, snapshot, changed.get("group", ()))
    users = joined_or_left.union(changed.get("user", ()))
    if len(users) > MOST_CHANGES:
        return None
    return Patch(
        _replacing(session, _adapters, changed.get("adapter", ())),
        _replacing(session, _users, users),
        _replacing(session, _keys, changed.get("key", ())),
        _replacing(session, _trials, changed.get("experiment", ())),
    )


def _joined_or_left(session: Session, snapshot: Snapshot, groups: Collection[str]) -> set[str]:
    """The users who are in one of these groups now and were not, or the other way round."""
    if not groups:
        return set()
    query = select(MemberRow.group_id, MemberRow.user_id).where(_in(MemberRow.group_id, groups))
    members = _grouped(session, query)
    return set().union(
        *(snapshot.members(g).symmetric_difference(members.get(g, ())) for g in groups)
    )


def _adapters(session: Session, names: Collection[str] | None = None) -> dict[str, Adapter]:
    versions = _latest_versions(session, names)
    users = _granted(session, GrantRow.user_id, GrantRow.adapter_id, names)
    groups = _granted(session, GroupGrantRow.group_id, GroupGrantRow.adapter_id, names)
    active = and_(
        VersionRow.adapter_id == AdapterRow.id, VersionRow.version == AdapterRow.active_version
    )
    columns = (VersionRow.version, VersionRow.engine_id, VersionRow.digest, VersionRow.rank)
    query = (
        select(AdapterRow.id, AdapterRow.owner, AdapterRow.public, *columns)
        .add_columns(VersionRow.bytes, VersionRow.created, VersionRow.base_fingerprint)
        .outerjoin(VersionRow, active)
        .where(AdapterRow.retired.is_(None), _in(AdapterRow.id, names))
    )
    found = {}
    for adapter_id, owner, public, *version in session.execute(query):
        found[adapter_id] = Adapter(
            _version(adapter_id, version) if version[0] is not None else None,
            versions.get(adapter_id, 0),
            owner and _intern(owner),
            public,
            compact(users.get(adapter_id, ())),
            compact(groups.get(adapter_id, ())),
        )
    return found


def _version(adapter_id: str, columns: Sequence[Any]) -> AdapterVersion:
    *others, base = columns
    return AdapterVersion(adapter_id, *(*others, _intern(base)))


def _latest_versions(session: Session, names: Collection[str] | None) -> dict[str, int]:
    query = select(VersionRow.adapter_id, func.max(VersionRow.version))
    query = query.where(_in(VersionRow.adapter_id, names)).group_by(VersionRow.adapter_id)
    return {row[0]: row[1] for row in session.execute(query)}


def _granted(
    session: Session,
    to: InstrumentedAttribute[str],
    adapter: InstrumentedAttribute[str],
    names: Collection[str] | None,
) -> dict[str, list[str]]:
    return _grouped(session, select(adapter, to).where(_in(adapter, names)))


def _users(session: Session, names: Collection[str] | None = None) -> dict[str, User]:
    groups = _grouped(
        session,
        select(MemberRow.user_id, MemberRow.group_id).where(_in(MemberRow.user_id, names)),
    )
    allowed = select(AllowanceRow).where(_in(AllowanceRow.user_id, names))
    allowances = {row.user_id: allowance_of(row) for row in session.scalars(allowed)}
    columns = (UserRow.id, UserRow.assigned, UserRow.experiment, UserRow.feedback)
    query = select(*columns).where(_in(UserRow.id, names))
    return {
        _intern(user_id): User(
            assigned and _intern(assigned),
            compact(groups.get(user_id, ())),
            allowances.get(user_id),
            experiment and _intern(experiment),
            feedback,
        )
        for user_id, assigned, experiment, feedback in session.execute(query)
    }


def _keys(session: Session, names: Collection[str] | None = None) -> dict[str, Key]:
    query = select(KeyRow.id, KeyRow.role, KeyRow.user_id, KeyRow.digest, KeyRow.expires)
    return {
        key_id: Key(Role(role), user_id and _intern(user_id), digest, expires)
        for key_id, role, user_id, digest, expires in session.execute(
            query.where(_in(KeyRow.id, names))
        )
    }


def _trials(session: Session, names: Collection[str] | None = None) -> dict[str, Trial]:
    same = and_(VersionRow.adapter_id == ArmRow.adapter_id, VersionRow.version == ArmRow.version)
    query = select(ArmRow.experiment_id, ArmRow.name, VersionRow).join(VersionRow, same)
    numbered: dict[str, dict[str, AdapterVersion]] = defaultdict(dict)
    for experiment_id, arm, row in session.execute(query.where(_in(ArmRow.experiment_id, names))):
        numbered[experiment_id][arm] = version_of(row)
    return {
        experiment_id: Trial(experiment, numbered[experiment_id])
        for experiment_id, experiment in read_experiments(session, names).items()
    }


def _grouped(session: Session, query: Select[str, str]) -> dict[str, list[str]]:
    """Rows of (holder, name) as holder → names."""
    found = defaultdict(list)
    for holder, name in session.execute(query):
        found[holder].append(_intern(name))
    return found


def _in(column: InstrumentedAttribute[str], names: Collection[str] | None) -> ColumnElement[bool]:
    return true() if names is None else column.in_(names)


def _replacing(
    session: Session,
    read: Callable[[Session, Collection[str]], Mapping[str, T]],
    names: Collection[str],
) -> dict[str, T | None]:
    """The entries of these names, None for those that are gone."""
    found = read(session, names) if names else {}
    return {name: found.get(name) for name in names}
