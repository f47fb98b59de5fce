"""Finding the row of a name that somebody gave, which may be any text or number at all.

Owns the look-ups that the registry's parts share and the errors of those that find nothing.
Refuses changes. What could be no name is never asked of the database, whose drivers stumble over
some texts (a NUL, half a surrogate pair) and over numbers too long for a column.
"""

from sqlalchemy import select
from sqlalchemy.orm import Session

from adapters.db import AdapterRow, ExperimentRow, GroupRow, UserRow, VersionRow
from adapters.errors import (
    AdapterNotFound,
    ExperimentNotFound,
    GroupNotFound,
    InvalidName,
    UserNotFound,
    VersionNotFound,
)
from adapters.names import check_user_id, is_adapter_id, is_label

LARGEST_VERSION = 2**31 - 1


def living_adapter(session: Session, adapter_id: str) -> AdapterRow:
    """An adapter that is not retired. Raises AdapterNotFound."""
    adapter = session.get(AdapterRow, adapter_id) if is_adapter_id(adapter_id) else None
    if adapter is None or adapter.retired:
        raise AdapterNotFound(adapter_id)
    return adapter


def version_row(session: Session, adapter_id: str, version: int) -> VersionRow:
    """Raises VersionNotFound."""
    query = select(VersionRow).where(
        VersionRow.adapter_id == adapter_id, VersionRow.version == version
    )
    row = session.scalar(query) if 0 < version <= LARGEST_VERSION else None
    if row is None:
        raise VersionNotFound(f"The adapter '{adapter_id}' has no version {version}.")
    return row


def user_row(session: Session, user_id: str) -> UserRow:
    """Raises UserNotFound."""
    row = session.get(UserRow, user_id) if is_user_id(user_id) else None
    if row is None:
        raise UserNotFound(user_id)
    return row


def group_row(session: Session, group_id: str) -> GroupRow:
    """Raises GroupNotFound."""
    row = session.get(GroupRow, group_id) if is_user_id(group_id) else None
    if row is None:
        raise GroupNotFound(group_id)
    return row


def experiment_row(session: Session, experiment_id: str) -> ExperimentRow:
    """Raises ExperimentNotFound."""
    row = session.get(ExperimentRow, experiment_id) if is_label(experiment_id) else None
    if row is None:
        raise ExperimentNotFound(experiment_id)
    return row


def is_user_id(text: str) -> bool:
    """Whether a user, or a group, could be called so."""
    try:
        check_user_id(text)
    except InvalidName:
        return False
    return True
