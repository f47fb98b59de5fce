"""Who may use which adapter: everyone, its owner, whom it is granted or assigned to.

Owns grants, assignments and the one condition that decides. Refuses identity; a user here is a
name that `accounts.py` vouches for.
"""

from collections.abc import Collection

from sqlalchemy import ColumnElement, Engine, delete, or_, select

from adapters.audit import log
from adapters.db import (
    AdapterRow,
    GrantRow,
    GroupGrantRow,
    MemberRow,
    UserRow,
    writing,
)
from adapters.rows import group_row, is_user_id, living_adapter, user_row


class Access:
    """The registry's part that grants and assigns."""

    engine: Engine

    def set_grants(
        self,
        adapter_id: str,
        *,
        everyone: bool,
        users: Collection[str],
        groups: Collection[str] = (),
        actor: str = "local",
    ) -> None:
        """Replace who may use the adapter besides its owner.

        Raises AdapterNotFound, UserNotFound, GroupNotFound.
        """
        with writing(self.engine) as session:
            adapter = living_adapter(session, adapter_id)
            to_users, to_groups = sorted(set(users)), sorted(set(groups))
            for user_id in to_users:
                user_row(session, user_id)
            for group_id in to_groups:
                group_row(session, group_id)
            adapter.public = everyone
            session.execute(delete(GrantRow).where(GrantRow.adapter_id == adapter_id))
            session.execute(delete(GroupGrantRow).where(GroupGrantRow.adapter_id == adapter_id))
            session.add_all(GrantRow(adapter_id=adapter_id, user_id=user) for user in to_users)
            session.add_all(GroupGrantRow(adapter_id=adapter_id, group_id=g) for g in to_groups)
            granted = {"everyone": everyone, "users": to_users, "groups": to_groups}
            log(session, actor, "adapter.grant", adapter_id, **granted)

    def assign(self, user_id: str, adapter_id: str | None, *, actor: str = "local") -> None:
        """What the user gets when he names nothing; None is the base. He leaves an experiment.

        Raises UserNotFound, AdapterNotFound.
        """
        with writing(self.engine) as session:
            user = user_row(session, user_id)
            if adapter_id is not None:
                living_adapter(session, adapter_id)
            before, user.assigned = user.assigned, adapter_id
            left, user.experiment = user.experiment, None
            details = {"left": left} if left else {}
            log(session, actor, "user.assign", user_id, before=before, after=adapter_id, **details)


def may_use(user_id: str | None) -> ColumnElement[bool]:
    """The condition on an adapter that this user, or nobody in particular, may use it.

    An administrator who assigns an adapter to a user means him to use it.
    """
    if user_id is None or not is_user_id(user_id):
        return AdapterRow.public.is_(True)
    granted = select(GrantRow.adapter_id).where(GrantRow.user_id == user_id)
    through_groups = (
        select(GroupGrantRow.adapter_id)
        .join(MemberRow, MemberRow.group_id == GroupGrantRow.group_id)
        .where(MemberRow.user_id == user_id)
    )
    assigned = select(UserRow.assigned).where(UserRow.id == user_id, UserRow.assigned.is_not(None))
    return or_(
        AdapterRow.public,
        AdapterRow.owner == user_id,
        AdapterRow.id.in_(granted),
        AdapterRow.id.in_(through_groups),
        AdapterRow.id.in_(assigned),
    )
