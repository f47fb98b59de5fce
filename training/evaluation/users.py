"""Whose an item is.

Owns the `user_id` of a record that is asked and not trained on: it may be missing, and it is
never used as a name of anything.
"""

from training.errors import DataError
from training.sources import Record
from training.users import USER_COLUMN


def owner(record: Record, where: str) -> str | None:
    """The record's user, None where it has none. Raises DataError that begins with `where`."""
    user = record.get(USER_COLUMN)
    if user is None:
        return None
    if isinstance(user, bool) or not isinstance(user, str | int):
        raise DataError(f"{where}: '{USER_COLUMN}' must be text or a whole number")
    return str(user)
