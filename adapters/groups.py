"""Groups of users, to whom adapters can be granted at once.

Owns which groups exist and who is in them. Refuses grants; those are the registry's (`access.py`).
A group's name follows the rules of a user's, and a later group of a name inherits nothing.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from adapters.audit import log
from adapters.db import GroupGrantRow, GroupRow, MemberRow, now, reading, writing
from adapters.errors import AlreadyExists, InvalidName
from adapters.rows import group_row, is_user_id, user_row


@dataclass(frozen=True)
class Group:
    id: str
    members: tuple[str, ...]
    created: datetime


class Groups:
    """Groups in the registry's database; every method is one transaction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create(self, group_id: str, *, actor: str = "local") -> Group:
        """Raises InvalidName, AlreadyExists."""
        if not is_user_id(group_id):
            raise InvalidName(
                f"{group_id[:80]!r} is no group name: use at most 128 lower-case letters, digits,"
                " '.', '_', '-' and '@', and begin with a letter or digit."
            )
        row = GroupRow(id=group_id, created=now())
        with writing(self._engine) as session:
            if session.get(GroupRow, group_id) is not None:
                raise AlreadyExists(f"The group '{group_id}' exists already.")
            session.add(row)
            log(session, actor, "group.create", group_id)
        return Group(group_id, (), row.created)

    def delete(self, group_id: str, *, actor: str = "local") -> None:
        """Delete the group and what was granted to it. Raises GroupNotFound."""
        with writing(self._engine) as session:
            row = group_row(session, group_id)
            granted = select(GroupGrantRow).where(GroupGrantRow.group_id == group_id)
            for grant in session.scalars(granted):
                session.delete(grant)
                log(session, actor, "adapter.ungrant", grant.adapter_id, group=group_id)
            session.flush()
            session.delete(row)
            log(session, actor, "group.delete", group_id)

    def add(self, group_id: str, users: Collection[str], *, actor: str = "local") -> None:
        """Put users into the group; who is in it stays. Raises GroupNotFound, UserNotFound."""
        with writing(self._engine) as session:
            group_row(session, group_id)
            new = sorted(set(users) - set(_members(session, group_id)))
            for user_id in new:
                user_row(session, user_id)
                session.add(MemberRow(group_id=group_id, user_id=user_id))
            if new:
                log(session, actor, "group.add", group_id, users=new)

    def remove(self, group_id: str, users: Collection[str], *, actor: str = "local") -> None:
        """Take users out of the group; who is not in it stays out. Raises GroupNotFound."""
        with writing(self._engine) as session:
            group_row(session, group_id)
            gone = sorted(set(users) & set(_members(session, group_id)))
            for user_id in gone:
                session.delete(session.get_one(MemberRow, (group_id, user_id)))
            if gone:
                log(session, actor, "group.remove", group_id, users=gone)

    def get(self, group_id: str) -> Group:
        """Raises GroupNotFound."""
        with reading(self._engine) as session:
            row = group_row(session, group_id)
            return Group(row.id, tuple(_members(session, group_id)), row.created)

    def list(self) -> Sequence[Group]:
        """Every group with its members, by name."""
        members = defaultdict(list)
        with reading(self._engine) as session:
            for row in session.scalars(select(MemberRow).order_by(MemberRow.user_id)):
                members[row.group_id].append(row.user_id)
            groups = session.scalars(select(GroupRow).order_by(GroupRow.id))
            return [Group(row.id, tuple(members[row.id]), row.created) for row in groups]


def _members(session: Session, group_id: str) -> Sequence[str]:
    query = select(MemberRow.user_id).where(MemberRow.group_id == group_id)
    return session.scalars(query.order_by(MemberRow.user_id)).all()
