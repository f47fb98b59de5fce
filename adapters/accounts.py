"""Users and their API keys.

Owns who exists and what a key proves. Refuses adapters; which of them a user may use is the
registry's. A key's secret is shown once and kept only as a hash: it has 256 random bits, so one
round of SHA-256 is enough where a password would need a slow hash.
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import Engine, delete, select, update
from sqlalchemy.exc import IntegrityError

from adapters.db import AdapterRow, AuditRow, GrantRow, KeyRow, UserRow, now, reading, writing
from adapters.errors import AlreadyExists, InvalidName, KeyNotFound, UserNotFound
from adapters.names import check_user_id

PREFIX = "bapo"
LONGEST_KEY = 128


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


class Accounts:
    """Users and keys in the registry's database; every method is one transaction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create_user(self, user_id: str, *, actor: str = "local") -> User:
        """Raises InvalidName, AlreadyExists."""
        row = UserRow(id=check_user_id(user_id), assigned=None, created=now())
        try:
            with writing(self._engine) as session:
                session.add(row)
                session.add(AuditRow(actor=actor, action="user.create", subject=user_id))
        except IntegrityError:
            raise AlreadyExists(f"The user '{user_id}' exists already.") from None
        return User(row.id, None, row.created)

    def list_users(self) -> Sequence[User]:
        with reading(self._engine) as session:
            rows = session.scalars(select(UserRow).order_by(UserRow.id))
            return [User(row.id, row.assigned, row.created) for row in rows]

    def delete_user(self, user_id: str, *, actor: str = "local") -> None:
        """Delete the user, his keys and his grants; what he owned is nobody's. Raises UserNotFound.

        A later user of the same name inherits nothing.
        """
        with writing(self._engine) as session:
            row = session.get(UserRow, user_id)
            if row is None:
                raise UserNotFound(user_id)
            session.execute(delete(GrantRow).where(GrantRow.user_id == user_id))
            session.execute(delete(KeyRow).where(KeyRow.user_id == user_id))
            session.execute(
                update(AdapterRow).where(AdapterRow.owner == user_id).values(owner=None)
            )
            session.delete(row)
            session.add(AuditRow(actor=actor, action="user.delete", subject=user_id))

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
            if user_id is not None and session.get(UserRow, user_id) is None:
                raise UserNotFound(user_id)
            session.add(
                KeyRow(id=key_id, role=role, user_id=user_id, digest=_digest(text), expires=expires)
            )
            details = {"role": role, "user": user_id}
            session.add(AuditRow(actor=actor, action="key.create", subject=key_id, details=details))
        return key_id, text

    def verify_key(self, text: str) -> Caller | None:
        """Who the key speaks for; None when it is unknown, wrong or expired."""
        parts = text.split("_", 2)
        if len(text) > LONGEST_KEY or len(parts) != 3 or parts[0] != PREFIX or not text.isascii():
            return None
        with reading(self._engine) as session:
            row = session.get(KeyRow, parts[1])
        if row is None or not hmac.compare_digest(row.digest, _digest(text)):
            return None
        if row.expires is not None and row.expires <= now():
            return None
        return Caller(Role(row.role), row.user_id, row.id)

    def revoke_key(self, key_id: str, *, actor: str = "local") -> None:
        """Raises KeyNotFound."""
        with writing(self._engine) as session:
            row = session.get(KeyRow, key_id)
            if row is None:
                raise KeyNotFound(key_id)
            session.delete(row)
            session.add(AuditRow(actor=actor, action="key.revoke", subject=key_id))

    def has_key(self, role: Role) -> bool:
        """Whether any key of this role exists."""
        with reading(self._engine) as session:
            return session.scalar(select(KeyRow.id).where(KeyRow.role == role).limit(1)) is not None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
