"""What users were answered and what they said of it: kept, forgotten, rated.

Owns the rows of answers, ratings and preferences, and the rule of consent: the database holds no
text of a user who has not agreed, or who has withdrawn. Of him it has, without texts, the answers
that an experiment gave him. Refuses to make training data (`pairs.py`) and results (`results.py`)
of it. Every method is one transaction, in turn with all other writers, so that what is written
beside a withdrawal is gone with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, and_, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from adapters.audit import log
from adapters.db import AnswerRow, PreferenceRow, RatingRow, UserRow, now, writing
from adapters.errors import AnswerNotFound, InvalidFeedback, QuotaExceeded, TextsNotKept
from adapters.rows import is_user_id, user_row
from adapters.turns import Message, check_prompt, check_text, digest_of

LONGEST_ID = 128
MOST_CHOICES = 2**31 - 1
MOST_PREFERENCES = 10_000
"""Of one user, given in words: nothing else would bound what a client can have kept."""
AT_ONCE = 1000
"""Expired answers that are removed in one transaction."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it was given; without texts where they are not to be kept."""

    user_id: str
    completion_id: str
    choice: int
    adapter: str
    """Its name, or `base`."""
    version: int | None
    experiment: str | None
    arm: str | None
    prompt: list[Message] | None
    text: str | None
    created: datetime
    expires: datetime


@dataclass(frozen=True, slots=True)
class AnswerRef:
    """An answer by the completion's id and the choice in it."""

    completion_id: str
    choice: int = 0


@dataclass(frozen=True, slots=True)
class Rating:
    """What is kept of what a user said of one answer; `has_texts`: it can become training data."""

    answer: AnswerRef
    good: bool
    adapter: str
    version: int | None
    has_texts: bool


class Feedback:
    """Answers, ratings and preferences in the registry's database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def set_consent(self, user_id: str, keep: bool, *, actor: str = "local") -> None:
        """Keep the texts of this user's answers from now on, or forget them all.

        Raises UserNotFound.
        """
        with writing(self._engine) as session:
            user = user_row(session, user_id)
            before, user.feedback = user.feedback, keep
            if not keep:
                _forget_texts(session, user_id)
            if before != keep:
                log(session, actor, "user.feedback", user_id, before=before, after=keep)

    def keep(self, answers: Sequence[Answer]) -> int:
        """Keep these for a while, as far as their users want now; again, it changes nothing.

        Returns how many were worth keeping.
        """
        with writing(self._engine) as session:
            users = {answer.user_id for answer in answers}
            query = select(UserRow.id, UserRow.feedback).where(UserRow.id.in_(users))
            agreed = {row.id: row.feedback for row in session.execute(query)}
            rows = [
                _row_of(answer, with_texts=agreed[answer.user_id])
                for answer in answers
                if answer.user_id in agreed and (agreed[answer.user_id] or answer.experiment)
            ]
            if rows:
                dialect = sqlite if self._engine.dialect.name == "sqlite" else postgresql
                session.execute(dialect.insert(AnswerRow).on_conflict_do_nothing(), rows)
        return len(rows)

    def expire(self) -> int:
        """Remove some of the answers whose time is over; returns how many, 0 when all are."""
        key = (AnswerRow.user_id, AnswerRow.completion_id, AnswerRow.choice)
        with writing(self._engine) as session:
            over = select(*key).where(AnswerRow.expires <= now()).limit(AT_ONCE)
            found = session.execute(over).all()
            for user_id, completion_id, choice in found:
                session.execute(
                    delete(AnswerRow).where(
                        AnswerRow.user_id == user_id,
                        AnswerRow.completion_id == completion_id,
                        AnswerRow.choice == choice,
                    )
                )
        return len(found)

    def rate(
        self, user_id: str, answer: AnswerRef, good: bool, correction: str | None = None
    ) -> Rating:
        """What the user thinks of one of his answers, and what it should have been.

        Said again, it replaces what was said. Raises AnswerNotFound, InvalidFeedback, TextsNotKept
        for a correction of what is not kept.
        """
        if correction is not None:
            check_text(correction, "correction")
        with writing(self._engine) as session:
            found = _answer(session, user_id, answer)
            if correction is not None:
                _texts(session, found)
                if correction == found.text:
                    raise InvalidFeedback("The correction is the answer itself: leave it out.")
            rating = _rating_of(session, found)
            rating.good, rating.correction, rating.created = good, correction, now()
            has_texts = rating.text is not None
            return Rating(answer, good, found.adapter, found.version, has_texts)

    def prefer_answer(self, user_id: str, chosen: AnswerRef, rejected: AnswerRef) -> None:
        """The user prefers one of his answers to another one to the same prompt.

        Raises AnswerNotFound, InvalidFeedback, TextsNotKept, QuotaExceeded.
        """
        with writing(self._engine) as session:
            better, worse = (_answer(session, user_id, one) for one in (chosen, rejected))
            (prompt, good), (other_prompt, bad) = (_texts(session, a) for a in (better, worse))
            if prompt != other_prompt:
                raise InvalidFeedback("The two answers belong to different prompts.")
            _prefer(session, user_id, prompt, good, bad, worse.adapter)

    def prefer_text(
        self, user_id: str, prompt: str | Sequence[Message], chosen: str, rejected: str
    ) -> None:
        """The same, of answers from anywhere. Raises UserNotFound and what `prefer_answer` does."""
        turns = check_prompt(prompt)
        check_text(chosen, "chosen")
        check_text(rejected, "rejected")
        with writing(self._engine) as session:
            if not user_row(session, user_id).feedback:
                raise TextsNotKept(_NO_CONSENT)
            _prefer(session, user_id, turns, chosen, rejected, None)


_NO_CONSENT = (
    "This user has not agreed that texts are kept: PUT /v1/feedback/consent with"
    ' {"keep": true} first.'
)


def forget_experiment(session: Session, experiment_id: str) -> None:
    """Nothing that is kept belongs to it any longer, in the transaction that deletes it."""
    for table in (AnswerRow, RatingRow):
        of_it = table.experiment == experiment_id
        session.execute(delete(table).where(of_it, table.text.is_(None)))
        session.execute(update(table).where(of_it).values(experiment=None, arm=None))


def _forget_texts(session: Session, user_id: str) -> None:
    for table in (AnswerRow, RatingRow):
        his = table.user_id == user_id
        session.execute(delete(table).where(and_(his, table.experiment.is_(None))))
        nothing: dict[str, Any] = {"prompt": None, "text": None}
        nothing |= {"correction": None} if table is RatingRow else {}
        session.execute(update(table).where(his).values(nothing))
    session.execute(delete(PreferenceRow).where(PreferenceRow.user_id == user_id))


def _row_of(answer: Answer, *, with_texts: bool) -> dict[str, Any]:
    kept = with_texts and answer.prompt is not None and answer.text is not None
    return {
        "user_id": answer.user_id,
        "completion_id": answer.completion_id[:LONGEST_ID],
        "choice": answer.choice,
        "adapter": answer.adapter,
        "version": answer.version,
        "experiment": answer.experiment,
        "arm": answer.arm,
        "prompt": answer.prompt if kept else None,
        "text": answer.text if kept else None,
        "created": answer.created,
        "expires": answer.expires,
    }


def _answer(session: Session, user_id: str, ref: AnswerRef) -> AnswerRow | RatingRow:
    """An answer of the user's that is kept, or that he has rated. Raises AnswerNotFound."""
    key = (user_id, ref.completion_id, ref.choice)
    is_id = ref.completion_id.isascii() and len(ref.completion_id) <= LONGEST_ID
    is_id = is_id and ref.completion_id.isprintable() and 0 <= ref.choice <= MOST_CHOICES
    if is_id and is_user_id(user_id):
        answer = session.get(AnswerRow, key)
        if answer is not None and answer.expires > now():
            return answer
        if rated := session.get(RatingRow, key):
            return rated
    raise AnswerNotFound(ref.completion_id)


def _texts(session: Session, answer: AnswerRow | RatingRow) -> tuple[list[Message], str]:
    """Raises TextsNotKept."""
    if not user_row(session, answer.user_id).feedback:
        raise TextsNotKept(_NO_CONSENT)
    if answer.prompt is None or answer.text is None:
        raise TextsNotKept(
            "The texts of this answer are not kept: it was cut short, is no plain text, or is from"
            " before the user agreed. It can be rated."
        )
    return answer.prompt, answer.text


def _rating_of(session: Session, answer: AnswerRow | RatingRow) -> RatingRow:
    """The row to write what is said into."""
    if isinstance(answer, RatingRow):
        return answer
    rating = session.get(RatingRow, (answer.user_id, answer.completion_id, answer.choice))
    if rating is None:
        rating = RatingRow(
            user_id=answer.user_id,
            completion_id=answer.completion_id,
            choice=answer.choice,
            adapter=answer.adapter,
            version=answer.version,
            experiment=answer.experiment,
            arm=answer.arm,
            answered=answer.created,
        )
        session.add(rating)
    rating.prompt, rating.text = answer.prompt, answer.text
    return rating


def _prefer(
    session: Session,
    user_id: str,
    prompt: list[Message],
    chosen: str,
    rejected: str,
    adapter: str | None,
) -> None:
    if chosen == rejected:
        raise InvalidFeedback("The two answers are the same text.")
    digest = digest_of(prompt, chosen, rejected)
    row = session.get(PreferenceRow, (user_id, digest))
    if row is None:
        kept = select(func.count()).where(PreferenceRow.user_id == user_id)
        if (session.scalar(kept) or 0) >= MOST_PREFERENCES:
            raise QuotaExceeded(f"{MOST_PREFERENCES} preferences of this user are kept already.")
        row = PreferenceRow(user_id=user_id, digest=digest, prompt=prompt)
        session.add(row)
    row.chosen, row.rejected, row.adapter, row.created = chosen, rejected, adapter, now()
