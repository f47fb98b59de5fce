"""The registry's tables.

Owns the SQLAlchemy mapping; the changes over time are in `migrations/`, transactions (imported
from here as well) in `connection.py`. Refuses every rule about adapters. Times are UTC.
Invariant: `audit` has a row for every change, in the transaction that made it, and its ids are in
the order of the commits, so that its largest id is the revision of everything here. What is only
counted (`token_usage`), and what users were answered and said of it (`answers`, `ratings`,
`preferences`), is no change and has none.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from adapters.connection import connect as connect
from adapters.connection import counting as counting
from adapters.connection import reading as reading
from adapters.connection import writing as writing

EVERYBODY = "*"  # the owner in `quotas` that stands for all who have no row

# On SQLite every integer has 64 bits, and by its own name only.
Bytes = BigInteger().with_variant(Integer, "sqlite")
Turns = JSON(none_as_null=True)
"""A prompt: messages, each with a role and a text as content."""


def now() -> datetime:
    return datetime.now(UTC)


class UtcTime(TypeDecorator[datetime]):
    """An aware datetime in UTC, also on databases that keep no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is None or value.tzinfo is None:
            return value and value.replace(tzinfo=UTC)
        return value.astimezone(UTC)  # PostgreSQL tells times in its own zone


class Base(DeclarativeBase):
    pass


class AdapterRow(Base):
    __tablename__ = "adapters"

    id: Mapped[str] = mapped_column(String(127), primary_key=True)
    owner: Mapped[str | None] = mapped_column(String(128), index=True)
    public: Mapped[bool] = mapped_column(default=False)
    active_version: Mapped[int | None]
    retired: Mapped[datetime | None] = mapped_column(UtcTime)
    created: Mapped[datetime] = mapped_column(UtcTime, default=now)


class VersionRow(Base):
    __tablename__ = "versions"
    __table_args__ = (
        UniqueConstraint("adapter_id", "version"),
        UniqueConstraint("adapter_id", "idempotency_key"),
        {"sqlite_autoincrement": True},  # an engine id is never used again
    )

    engine_id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id"))
    version: Mapped[int]
    digest: Mapped[str] = mapped_column(String(71), index=True)
    rank: Mapped[int]
    bytes: Mapped[int] = mapped_column(Bytes)
    base_fingerprint: Mapped[str] = mapped_column(String(71))
    manifest: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    created: Mapped[datetime] = mapped_column(UtcTime, default=now)


class ActivationRow(Base):
    """One activation that no rollback has taken back; an adapter's newest is the active one."""

    __tablename__ = "activations"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id"), index=True)
    version: Mapped[int]


class GrantRow(Base):
    __tablename__ = "grants"

    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id"), primary_key=True)
    user_id: Mapped[str] = mapped_column(String(128), primary_key=True, index=True)


class UserRow(Base):
    __tablename__ = "users"

    id: Mapped[str] = mapped_column(String(128), primary_key=True)
    assigned: Mapped[str | None] = mapped_column(ForeignKey("adapters.id"))
    experiment: Mapped[str | None] = mapped_column(ForeignKey("experiments.id"), index=True)
    feedback: Mapped[bool] = mapped_column(default=False)
    """Whether he has agreed that the texts of his answers are kept for a while."""
    created: Mapped[datetime] = mapped_column(UtcTime, default=now)


class ExperimentRow(Base):
    __tablename__ = "experiments"

    id: Mapped[str] = mapped_column(String(63), primary_key=True)
    state: Mapped[str] = mapped_column(String(16))
    winner: Mapped[str | None] = mapped_column(String(63))
    created: Mapped[datetime] = mapped_column(UtcTime, default=now)
    started: Mapped[datetime | None] = mapped_column(UtcTime)
    ended: Mapped[datetime | None] = mapped_column(UtcTime)


class ArmRow(Base):
    """What an arm serves: no adapter is the base, no version whatever is active."""

    __tablename__ = "experiment_arms"

    experiment_id: Mapped[str] = mapped_column(
        ForeignKey("experiments.id", ondelete="CASCADE"), primary_key=True
    )
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    position: Mapped[int]
    adapter_id: Mapped[str | None] = mapped_column(ForeignKey("adapters.id"))
    version: Mapped[int | None]
    weight: Mapped[int]


class GroupRow(Base):
    __tablename__ = "groups"

    id: Mapped[str] = mapped_column(String(128), primary_key=True)
    created: Mapped[datetime] = mapped_column(UtcTime, default=now)


class MemberRow(Base):
    __tablename__ = "group_members"

    group_id: Mapped[str] = mapped_column(
        ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True
    )
    user_id: Mapped[str] = mapped_column(
        ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, index=True
    )


class GroupGrantRow(Base):
    __tablename__ = "group_grants"

    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id"), primary_key=True)
    group_id: Mapped[str] = mapped_column(
        ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True, index=True
    )


class QuotaRow(Base):
    """What an owner may have; the row of EVERYBODY is for owners without one. None: no bound."""

    __tablename__ = "quotas"

    owner: Mapped[str] = mapped_column(String(128), primary_key=True)
    max_versions: Mapped[int | None]
    max_bytes: Mapped[int | None] = mapped_column(Bytes)


class AllowanceRow(Base):
    """What one user may use, where that is not what everybody may. None: as everybody."""

    __tablename__ = "allowances"

    user_id: Mapped[str] = mapped_column(
        ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    )
    requests_per_minute: Mapped[int | None] = mapped_column(Bytes)
    tokens_per_minute: Mapped[int | None] = mapped_column(Bytes)
    streams: Mapped[int | None] = mapped_column(Bytes)
    tokens_per_month: Mapped[int | None] = mapped_column(Bytes)


class UsageRow(Base):
    """Tokens that a user has used in a month; of whoever keys have spoken for, users or not."""

    __tablename__ = "token_usage"

    user_id: Mapped[str] = mapped_column(String(128), primary_key=True)
    month: Mapped[str] = mapped_column(String(7), primary_key=True)
    prompt_tokens: Mapped[int] = mapped_column(Bytes)
    completion_tokens: Mapped[int] = mapped_column(Bytes)


class OfAnAnswer:
    """Columns: which answer, who gave it, and its texts where its user has agreed to that."""

    user_id: Mapped[str] = mapped_column(
        String(128), ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    )
    completion_id: Mapped[str] = mapped_column(String(128), primary_key=True)
    choice: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    adapter: Mapped[str] = mapped_column(String(127))  # "base", too
    version: Mapped[int | None]
    experiment: Mapped[str | None] = mapped_column(String(63))
    arm: Mapped[str | None] = mapped_column(String(63))
    prompt: Mapped[list[dict[str, str]] | None] = mapped_column(Turns)
    text: Mapped[str | None] = mapped_column(Text)


class AnswerRow(OfAnAnswer, Base):
    """An answer that can be rated until it expires."""

    __tablename__ = "answers"

    created: Mapped[datetime] = mapped_column(UtcTime)
    expires: Mapped[datetime] = mapped_column(UtcTime, index=True)


class RatingRow(OfAnAnswer, Base):
    """What a user said of an answer, with a copy of all that is needed when that has expired."""

    __tablename__ = "ratings"
    __table_args__ = (Index("ix_ratings_experiment", "experiment"),)

    good: Mapped[bool]
    correction: Mapped[str | None] = mapped_column(Text)
    answered: Mapped[datetime] = mapped_column(UtcTime)
    created: Mapped[datetime] = mapped_column(UtcTime, default=now)


class PreferenceRow(Base):
    """Two answers to one prompt, and which of them the user prefers."""

    __tablename__ = "preferences"

    user_id: Mapped[str] = mapped_column(
        ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    )
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Of the prompt and of both answers, in whatever order: said again, it is replaced."""
    prompt: Mapped[list[dict[str, str]]] = mapped_column(Turns)
    chosen: Mapped[str] = mapped_column(Text)
    rejected: Mapped[str] = mapped_column(Text)
    adapter: Mapped[str | None] = mapped_column(String(127))  # who gave the rejected one
    created: Mapped[datetime] = mapped_column(UtcTime, default=now)


class KeyRow(Base):
    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    role: Mapped[str] = mapped_column(String(16))
    user_id: Mapped[str | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    digest: Mapped[str] = mapped_column(String(64))
    expires: Mapped[datetime | None] = mapped_column(UtcTime)
    created: Mapped[datetime] = mapped_column(UtcTime, default=now)


class AuditRow(Base):
    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(UtcTime, default=now)
    actor: Mapped[str] = mapped_column(String(128))
    action: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(String(128), index=True)
    details: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
