"""Users and their API keys.

Owns who exists and what a key proves. Refuses adapters; which of them a user may use is the
registry's. A key's secret is shown once and kept only as a hash: it has 256 random bits, so one
round of SHA-256 is enough where a password would need a slow hash.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from adapters.allowances import forget
from adapters.audit import log
from adapters.db import (
    AdapterRow,
    GrantRow,
    KeyRow,
    MemberRow,
    QuotaRow,
    UserRow,
    now,
    reading,
    writing,
)
from adapters.errors import AlreadyExists, InvalidName, KeyNotFound
from adapters.names import check_user_id
from adapters.rows import user_row

PREFIX = "bapo"
LONGEST_KEY = 128
MAX_DAYS = 36_500.0
_KEY_ID = re.compile(r"[0-9a-f]{16}")


class Role(StrEnum):
    """What a key may do: speak for its user, speak for any user, administer."""

    USER = "user"
    SERVICE = "service"
    ADMIN = "admin"


@dataclass(frozen=True)
class Caller:
    """Who a valid key speaks for."""

    role: Role
    user_id: str | None
    key_id: str


@dataclass(frozen=True)
class User:
    id: str
    assigned: str | None
    created: datetime
    experiment: str | None = None
    feedback: bool = False
    """Whether he has agreed that the texts of his answers are kept for a while."""


class Accounts:
    """Users and keys in the registry's database; every method is one transaction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create_user(self, user_id: str, *, actor: str = "local") -> User:
        """Raises InvalidName, AlreadyExists."""
        row = UserRow(id=check_user_id(user_id), assigned=None, created=now())
        with writing(self._engine) as session:
            if session.get(UserRow, user_id) is not None:
                raise AlreadyExists(f"The user '{user_id}' exists already.")
            session.add(row)
            log(session, actor, "user.create", user_id)
        return User(row.id, None, row.created)

    def list_users(self, after: str | None = None, limit: int | None = None) -> Sequence[User]:
        """Users by name, all or a page; `after` the last name of one page begins the next page."""
        query = select(UserRow).order_by(UserRow.id).limit(limit)
        if after is not None and after.isprintable():
            query = query.where(UserRow.id > after)
        with reading(self._engine) as session:
            rows = session.scalars(query)
            return [
                User(row.id, row.assigned, row.created, row.experiment, row.feedback)
                for row in rows
            ]

    def delete_user(self, user_id: str, *, actor: str = "local") -> None:
        """Delete the user with all that is kept of him. Raises UserNotFound.

        What he owned is nobody's, and a later user of the same name inherits nothing.
        """
        with writing(self._engine) as session:
            row = user_row(session, user_id)
            _disinherit(session, user_id, actor)
            session.flush()
            session.delete(row)
            log(session, actor, "user.delete", user_id)

    def create_key(
        self,
        role: Role,
        user_id: str | None = None,
        expires: datetime | None = None,
        *,
        actor: str = "local",
    ) -> tuple[str, str]:
        """A new key: its id, and the secret text, which can never be shown again.

        Raises UserNotFound, InvalidName for a user key without a user.
        """
        if role is Role.USER and user_id is None:
            raise InvalidName("A user key needs a user: name one.")
        key_id = secrets.token_hex(8)
        text = f"{PREFIX}_{key_id}_{secrets.token_urlsafe(32)}"
        with writing(self._engine) as session:
            if user_id is not None:
                user_row(session, user_id)
            session.add(
                KeyRow(
                    id=key_id, role=role, user_id=user_id, digest=key_digest(text), expires=expires
                )
            )
            log(session, actor, "key.create", key_id, role=role, user=user_id)
        return key_id, text

    def create_key_for(
        self, role: Role, user_id: str | None, days: float | None, *, actor: str = "local"
    ) -> dict[str, Any]:
        """A new key as it is shown, this once: valid for so many days, or until it is revoked.

        Raises what `create_key` raises.
        """
        expires = None if days is None else now() + timedelta(days=days)
        key_id, secret = self.create_key(role, user_id, expires, actor=actor)
        shown = expires and expires.isoformat()
        return {"id": key_id, "key": secret, "role": role, "expires": shown}

    def verify_key(self, text: str) -> Caller | None:
        """Who the key speaks for; None when it is unknown, wrong or expired."""
        if (key_id := key_id_of(text)) is None:
            return None
        with reading(self._engine) as session:
            row = session.get(KeyRow, key_id)
        if row is None or not hmac.compare_digest(row.digest, key_digest(text)):
            return None
        if row.expires is not None and row.expires <= now():
            return None
        return Caller(Role(row.role), row.user_id, row.id)

    def revoke_key(self, key_id: str, *, actor: str = "local") -> None:
        """Raises KeyNotFound."""
        with writing(self._engine) as session:
            row = session.get(KeyRow, key_id) if _KEY_ID.fullmatch(key_id) else None
            if row is None:
                raise KeyNotFound(key_id)
            session.delete(row)
            log(session, actor, "key.revoke", key_id)

    def has_key(self, role: Role) -> bool:
        """Whether any key of this role exists."""
        with reading(self._engine) as session:
            return session.scalar(select(KeyRow.id).where(KeyRow.role == role).limit(1)) is not None


def key_id_of(text: str) -> str | None:
    """The id in a key's text, None where the text is no key at all."""
    parts = text.split("_", 2)
    if len(text) > LONGEST_KEY or len(parts) != 3 or parts[0] != PREFIX or not text.isascii():
        return None
    return parts[1] if _KEY_ID.fullmatch(parts[1]) else None


def key_digest(text: str) -> str:
    """What is kept of a key's text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _disinherit(session: Session, user_id: str, actor: str) -> None:
    """Whatever names the user names him no longer; each line of the log says what changed."""
    for adapter in session.scalars(select(AdapterRow).where(AdapterRow.owner == user_id)):
        adapter.owner = None
        log(session, actor, "adapter.disown", adapter.id, before=user_id, after=None)
    for grant in session.scalars(select(GrantRow).where(GrantRow.user_id == user_id)):
        session.delete(grant)
        log(session, actor, "adapter.ungrant", grant.adapter_id, user=user_id)
    for member in session.scalars(select(MemberRow).where(MemberRow.user_id == user_id)):
        session.delete(member)
        log(session, actor, "group.remove", member.group_id, users=[user_id])
    for key in session.scalars(select(KeyRow).where(KeyRow.user_id == user_id)):
        session.delete(key)
        log(session, actor, "key.revoke", key.id)
    forget(session, user_id)
    if quota := session.get(QuotaRow, user_id):
        session.delete(quota)
        log(session, actor, "quota.delete", user_id)
