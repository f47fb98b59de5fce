"""What a user may use of the server: requests and tokens in a minute, at once, in a month.

Owns the exceptions that an administrator makes for one user, and what he has used in each calendar
month (UTC). Refuses to count a minute and to refuse a request; that is the server's. Used tokens
are added up, by any number of servers; they are no decision of anybody's and not in the audit log.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from sqlalchemy import Engine, delete
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from adapters.audit import log
from adapters.db import AllowanceRow, UsageRow, counting, reading, writing
from adapters.errors import InvalidName
from adapters.rows import is_user_id, user_row

LARGEST = 2**53
"""What a JSON number holds exactly; as good as no bound."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """Bounds on one user; None is what the server allows everybody."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    streams: int | None = None
    """Requests that are being answered at the same time."""
    tokens_per_month: int | None = None

    def or_else(self, default: "Allowance") -> "Allowance":
        """This one, with the default's bounds where it has none."""
        own = {name: value for name, value in asdict(self).items() if value is not None}
        return Allowance(**{**asdict(default), **own})


@dataclass(frozen=True, slots=True)
class Spent:
    """Tokens of one month."""

    month: str  # "2026-11"
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Allowances:
    """Exceptions and used tokens in the registry's database; every method is one transaction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def set(self, user_id: str, allowance: Allowance, *, actor: str = "local") -> None:
        """Replace the user's exceptions. Raises UserNotFound, InvalidName for an odd bound."""
        for name, value in asdict(allowance).items():
            if value is not None and not 0 <= value <= LARGEST:
                raise InvalidName(f"{name} must be between 0 and {LARGEST}, or nothing.")
        with writing(self._engine) as session:
            user_row(session, user_id)
            row = session.get(AllowanceRow, user_id)
            if row is None:
                row = AllowanceRow(user_id=user_id)
                session.add(row)
            for name, value in asdict(allowance).items():
                setattr(row, name, value)
            log(session, actor, "user.limits", user_id, **asdict(allowance))

    def of(self, user_id: str) -> Allowance:
        """The user's exceptions. Raises UserNotFound."""
        with reading(self._engine) as session:
            user_row(session, user_id)
            row = session.get(AllowanceRow, user_id)
            return Allowance() if row is None else allowance_of(row)

    def spent(self, user_id: str, month: str) -> Spent:
        """What the user, whether or not he exists, has used in this month."""
        with reading(self._engine) as session:
            row = session.get(UsageRow, (user_id, month)) if is_user_id(user_id) else None
            if row is None:
                return Spent(month)
            return Spent(month, row.prompt_tokens, row.completion_tokens)

    def add(self, month: str, tokens: Mapping[str, tuple[int, int]]) -> None:
        """Add prompt and completion tokens to what these users have used."""
        # In one order everywhere, so that two servers never wait for each other.
        users = sorted(filter(is_user_id, tokens))
        dialect = sqlite if self._engine.dialect.name == "sqlite" else postgresql
        with counting(self._engine) as session:
            for user_id in users:
                prompt, completion = tokens[user_id]
                new = dialect.insert(UsageRow).values(
                    user_id=user_id, month=month, prompt_tokens=prompt, completion_tokens=completion
                )
                more = {
                    "prompt_tokens": UsageRow.prompt_tokens + new.excluded.prompt_tokens,
                    "completion_tokens": UsageRow.completion_tokens
                    + new.excluded.completion_tokens,
                }
                keys = [UsageRow.user_id, UsageRow.month]
                session.execute(new.on_conflict_do_update(index_elements=keys, set_=more))


def allowance_of(row: AllowanceRow) -> Allowance:
    return Allowance(**{field.name: getattr(row, field.name) for field in fields(Allowance)})


def forget(session: Session, user_id: str) -> None:
    """Take out all that is kept here of a user, in the transaction that deletes him."""
    for table in (AllowanceRow, UsageRow):
        session.execute(delete(table).where(table.user_id == user_id))
