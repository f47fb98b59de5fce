"""The log of who changed what, and when: written by every change, read newest first.

Owns its entries. Refuses to judge them. An entry is in the transaction of its change, so the log
and the tables cannot disagree, and the newest id is the registry's revision.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from adapters.db import AuditRow, reading

LONGEST_ACTOR = 128


@dataclass(frozen=True)
class AuditEntry:
    """One change: `action` is `adapter.activate` and the like, `subject` the name of what changed.

    Moves of a pointer have `before` and `after` in their details.
    """

    id: int
    at: datetime
    actor: str
    action: str
    subject: str
    details: dict[str, Any]


def log(session: Session, actor: str, action: str, subject: str, **details: Any) -> None:
    """Write an entry into the transaction of `session`."""
    row = AuditRow(actor=actor[:LONGEST_ACTOR], action=action, subject=subject, details=details)
    session.add(row)


def audit_log(
    engine: Engine, subject: str | None, after: int | None, limit: int
) -> Sequence[AuditEntry]:
    """The newest entries, of one `subject` or of all; `after` an id, the ones that are older."""
    if subject is not None and not subject.isprintable():  # and no database is asked for it
        return []
    query = select(AuditRow).order_by(AuditRow.id.desc()).limit(limit)
    if subject is not None:
        query = query.where(AuditRow.subject == subject)
    if after is not None:
        query = query.where(AuditRow.id < after)
    with reading(engine) as session:
        return [
            AuditEntry(row.id, row.at, row.actor, row.action, row.subject, row.details)
            for row in session.scalars(query)
        ]
