"""From what users said to preference pairs, in the columns that `bapo train` and `bapo fleet` read.

Owns which pairs there are: a correction before the answer that it corrects; an answer that was
liked before one that was not, where both are to the same prompt of the same user; a preference as
it was given. A text that was rated twice counts as it was rated last. Every rated text is in a pair
if there is any for it, and in no more than that needs, so that n answers make at most n pairs.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Engine, select, union
from sqlalchemy.orm import Session

from adapters.audit import log
from adapters.db import PreferenceRow, RatingRow, reading, writing
from adapters.names import is_adapter_id
from adapters.rows import is_user_id
from adapters.turns import Message, digest_of

USERS_AT_ONCE = 100

Pair = dict[str, Any]
"""`prompt`, `chosen` and `rejected` as messages (TRL's form), and `user_id`."""


def users_with_pairs(
    engine: Engine,
    *,
    user_id: str | None = None,
    adapter: str | None = None,
    after: str | None = None,
    limit: int | None = None,
) -> list[tuple[str, list[Pair]]]:
    """Users by name and the pairs of each, perhaps none: all who said anything, or a page.

    `adapter` leaves only what was said of its answers (`base`: of the base's). `after` the last
    user of the page before.
    """
    ratings = select(RatingRow.user_id).where(RatingRow.text.is_not(None))
    said = union(ratings, select(PreferenceRow.user_id)).subquery()
    query = select(said.c.user_id).order_by(said.c.user_id).limit(limit)
    if user_id is not None:
        query = query.where(said.c.user_id == (user_id if is_user_id(user_id) else ""))
    if after is not None and after.isprintable():
        query = query.where(said.c.user_id > after)
    if adapter is not None and not is_adapter_id(adapter):  # and no database is asked for it
        return []
    with reading(engine) as session:
        return [(user, _pairs_of(session, user, adapter)) for user in session.scalars(query).all()]


def note_export(engine: Engine, user_id: str | None, adapter: str | None, actor: str) -> None:
    """Who has read what users said is in the audit log; what he read is not."""
    with writing(engine) as session:
        subject = user_id if user_id is not None and is_user_id(user_id) else "*"
        of = adapter if adapter is not None and is_adapter_id(adapter) else None
        log(session, actor, "feedback.export", subject, adapter=of)


def _pairs_of(session: Session, user_id: str, adapter: str | None) -> list[Pair]:
    rated = select(RatingRow).where(RatingRow.user_id == user_id, RatingRow.text.is_not(None))
    given = select(PreferenceRow).where(PreferenceRow.user_id == user_id)
    if adapter is not None:
        rated = rated.where(RatingRow.adapter == adapter)
        given = given.where(PreferenceRow.adapter == adapter)
    order = (RatingRow.created, RatingRow.completion_id, RatingRow.choice)
    ratings = session.scalars(rated.order_by(*order)).all()
    preferences = session.scalars(given.order_by(PreferenceRow.created, PreferenceRow.digest))
    found: dict[str, Pair] = {}  # once each, in the order in which they were said
    for prompt, chosen, rejected in (
        *_from_ratings(ratings),
        *((row.prompt, row.chosen, row.rejected) for row in preferences),
    ):
        key = f"{digest_of(prompt, chosen)} {digest_of(prompt, rejected)}"
        found.setdefault(key, _pair(user_id, prompt, chosen, rejected))
    return list(found.values())


def _from_ratings(ratings: Iterable[RatingRow]) -> Iterator[tuple[list[Message], str, str]]:
    """Prompt, chosen, rejected."""
    prompts: dict[str, list[Message]] = {}
    opinions: dict[str, dict[str, bool]] = defaultdict(dict)
    for row in ratings:
        if row.prompt is None or row.text is None:
            continue
        prompt = digest_of(row.prompt)
        prompts[prompt] = row.prompt
        opinions[prompt].pop(row.text, None)
        opinions[prompt][row.text] = row.good
        if row.correction is not None:
            yield row.prompt, row.correction, row.text
    for prompt, texts in opinions.items():
        liked = [text for text, good in texts.items() if good]
        disliked = [text for text, good in texts.items() if not good]
        for chosen, rejected in _matched(liked, disliked):
            yield prompts[prompt], chosen, rejected


def _matched(liked: Sequence[str], disliked: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each of the longer list with one of the shorter, in turn."""
    if liked and disliked:
        for place in range(max(len(liked), len(disliked))):
            yield liked[place % len(liked)], disliked[place % len(disliked)]


def _pair(user_id: str, prompt: Sequence[Message], chosen: str, rejected: str) -> Pair:
    return {
        "prompt": list(prompt),
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "user_id": user_id,
    }
