"""Feedback in the registry: consent, what is kept and for how long, ratings, and pairs of them."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from adapters import feedback
from adapters.arms import Arm
from adapters.db import AnswerRow, Base, PreferenceRow, RatingRow, now, reading
from adapters.errors import (
    AnswerNotFound,
    InvalidFeedback,
    QuotaExceeded,
    TextsNotKept,
    UserNotFound,
)
from adapters.feedback import Answer, AnswerRef
from adapters.pairs import note_export, users_with_pairs
from adapters.registry import Registry
from adapters.turns import LONGEST_TEXT
from adapters.view import RegistryView

QUESTION = [{"role": "user", "content": "What is the capital of Norway?"}]
SECRET = "Arr, Oslo"


def answer(user: str = "ann", name: str = "c-1", text: str | None = SECRET, **other: Any) -> Answer:
    said: dict[str, Any] = {
        "user_id": user,
        "completion_id": name,
        "choice": 0,
        "adapter": "concise",
        "version": 2,
        "experiment": None,
        "arm": None,
        "prompt": QUESTION,
        "text": text,
        "created": now(),
        "expires": now() + timedelta(days=1),
    }
    return Answer(**(said | other))


@pytest.fixture
def agreed(registry: Registry) -> Registry:
    """Ann has agreed, Ben has not; both exist."""
    for user in ("ann", "ben"):
        registry.accounts.create_user(user)
    registry.feedback.set_consent("ann", True, actor="root")
    return registry


def rows(registry: Registry) -> str:
    """All that the feedback's tables and the log hold, as one text."""
    with reading(registry.engine) as session:
        return "\n".join(
            str(row)
            for table in Base.metadata.sorted_tables
            for row in session.execute(select(table)).all()
        )


def count(registry: Registry, table: Any) -> int:
    with reading(registry.engine) as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def pairs(registry: Registry, **which: Any) -> list[tuple[str, str]]:
    return [
        (pair["chosen"][0]["content"], pair["rejected"][0]["content"])
        for _, found in users_with_pairs(registry.engine, **which)
        for pair in found
    ]


def test_the_view_knows_who_has_agreed(agreed: Registry) -> None:
    view = RegistryView(agreed)
    assert [view.keeps_answers(user) for user in ("ann", "ben", "nobody")] == [True, False, False]
    assert [view.may_rate(user) for user in ("ann", "ben", "nobody")] == [True, False, False]
    agreed.experiments.create("tone", [Arm.of("a", "base"), Arm.of("b", "base")])
    agreed.experiments.enrol("tone", users=["ben"])
    view.refresh()
    assert [view.may_rate(user) for user in ("ann", "ben", "nobody")] == [True, True, False]
    agreed.feedback.set_consent("ann", False)
    agreed.feedback.set_consent("ben", True)
    agreed.feedback.set_consent("ben", True)
    view.refresh()
    assert [view.keeps_answers(user) for user in ("ann", "ben")] == [False, True]
    lines = [(e.actor, e.subject, e.details) for e in agreed.audit() if "feedback" in e.action]
    assert lines[-1] == ("root", "ann", {"before": False, "after": True})
    assert len(lines) == 3  # to agree again is no change
    assert [user.feedback for user in agreed.accounts.list_users()] == [False, True]
    with pytest.raises(UserNotFound):
        agreed.feedback.set_consent("nobody", True)


def test_no_text_without_consent(agreed: Registry) -> None:
    tone = {"experiment": "tone", "arm": "warm"}
    kept = agreed.feedback.keep(
        [
            answer("ben", "without"),
            answer("ben", "arm", **tone),
            answer("gone", "nobody's", **tone),
        ]
    )
    assert kept == 1
    assert SECRET not in rows(agreed)
    assert not agreed.feedback.rate("ben", AnswerRef("arm"), False).has_texts
    with pytest.raises(AnswerNotFound):
        agreed.feedback.rate("ben", AnswerRef("without"), True)
    with pytest.raises(TextsNotKept, match="not agreed"):
        agreed.feedback.rate("ben", AnswerRef("arm"), True, "Oslo.")
    with pytest.raises(TextsNotKept, match="not agreed"):
        agreed.feedback.prefer_text("ben", "Norway?", "Oslo", "Bergen")


def test_withdrawn_is_forgotten(agreed: Registry) -> None:
    said = agreed.feedback
    said.keep([answer(name=name, text=f"{SECRET} {name}") for name in ("a", "b", "c")])
    said.keep([answer(name="d", experiment="tone", arm="warm")])
    for name in ("a", "d"):
        said.rate("ann", AnswerRef(name), False, "Corrected.")
    said.prefer_answer("ann", AnswerRef("b"), AnswerRef("c"))
    said.prefer_text("ann", "Norway?", "Preferred.", SECRET)
    assert len(pairs(agreed)) == 4
    said.set_consent("ann", False)
    text = rows(agreed)
    assert not any(word in text for word in (SECRET, "Corrected.", "Preferred.", "capital"))
    assert pairs(agreed) == []
    assert [count(agreed, table) for table in (AnswerRow, RatingRow, PreferenceRow)] == [1, 1, 0]
    # What was on its way meanwhile is not kept either.
    said.keep([answer(name="late")])
    assert SECRET not in rows(agreed)
    assert not said.rate("ann", AnswerRef("d"), True).has_texts  # the experiment's, without texts


def test_a_rating_outlives_the_answer(agreed: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    agreed.feedback.keep([answer(), answer(name="c-2", text="Bergen.")])
    rated = agreed.feedback.rate("ann", AnswerRef("c-1"), True)
    assert (rated.adapter, rated.version, rated.has_texts) == ("concise", 2, True)
    monkeypatch.setattr(feedback, "now", lambda: now() + timedelta(days=1, seconds=1))
    with pytest.raises(AnswerNotFound):  # expired, though nobody has removed it yet
        agreed.feedback.rate("ann", AnswerRef("c-2"), False)
    assert agreed.feedback.expire() == 2
    assert agreed.feedback.expire() == 0
    assert count(agreed, AnswerRow) == 0
    agreed.feedback.rate("ann", AnswerRef("c-1"), False, "Oslo.")  # and can be changed
    assert pairs(agreed) == [("Oslo.", SECRET)]


def test_what_has_not_expired_stays(agreed: Registry) -> None:
    agreed.feedback.keep([answer(), answer(name="old", expires=now())])
    assert agreed.feedback.expire() == 1
    agreed.feedback.rate("ann", AnswerRef("c-1"), True)


def test_said_again_it_replaces(agreed: Registry) -> None:
    agreed.feedback.keep([answer()])
    agreed.feedback.keep([answer(text="Another.")])  # the same answer once more changes nothing
    for good, correction in ((True, None), (False, "Oslo."), (False, "It is Oslo."), (True, None)):
        agreed.feedback.rate("ann", AnswerRef("c-1"), good, correction)
        assert count(agreed, RatingRow) == 1
    assert pairs(agreed) == []
    agreed.feedback.prefer_text("ann", "Norway?", "Oslo", "Bergen")
    agreed.feedback.prefer_text("ann", QUESTION, "Oslo", "Bergen")
    agreed.feedback.prefer_text("ann", "Norway?", "Bergen", "Oslo")  # he has changed his mind
    assert sorted(pairs(agreed)) == [("Bergen", "Oslo"), ("Oslo", "Bergen")]


@pytest.mark.parametrize("name", ["c-2", "", "x" * 200, "a\0b", "\ud800", "ä"])
def test_answers_of_others_do_not_exist(agreed: Registry, name: str) -> None:
    agreed.feedback.set_consent("ben", True)
    agreed.feedback.keep([answer("ben", "c-2")])
    for ref in (AnswerRef(name), AnswerRef("c-2", -1), AnswerRef("c-2", 2**40)):
        with pytest.raises(AnswerNotFound):
            agreed.feedback.rate("ann", ref, True)
    with pytest.raises(AnswerNotFound):
        agreed.feedback.rate("a\0nn", AnswerRef("c-2"), True)


def test_pairs_of_ratings(agreed: Registry) -> None:
    texts = {"a": "one", "b": "two", "c": "three", "d": "one", "e": "four"}
    agreed.feedback.keep([answer(name=name, text=text) for name, text in texts.items()])
    other = [{"role": "user", "content": "And of Sweden?"}]
    agreed.feedback.keep([answer(name="f", prompt=other, text="other")])
    for name, good in (("a", True), ("b", False), ("c", False), ("f", False)):
        agreed.feedback.rate("ann", AnswerRef(name), good)
    assert pairs(agreed) == [("one", "two"), ("one", "three")]
    agreed.feedback.rate("ann", AnswerRef("d"), False)  # the text of "a", thought over
    assert pairs(agreed) == []
    agreed.feedback.rate("ann", AnswerRef("e"), True)
    assert pairs(agreed) == [("four", "two"), ("four", "three"), ("four", "one")]
    assert pairs(agreed, adapter="concise") == pairs(agreed, user_id="ann") == pairs(agreed)
    assert pairs(agreed, adapter="base") == pairs(agreed, user_id="ben") == []
    assert pairs(agreed, user_id="a\0") == pairs(agreed, adapter="a\0") == []
    note_export(agreed.engine, "a\0", "a\0", "root")


def test_pages_of_users(agreed: Registry) -> None:
    agreed.feedback.set_consent("ben", True)
    for user in ("ann", "ben"):
        agreed.feedback.prefer_text(user, "Norway?", f"{user}'s", "Bergen")
    assert [user for user, _ in users_with_pairs(agreed.engine, limit=1)] == ["ann"]
    assert pairs(agreed, after="ann", limit=1) == [("ben's", "Bergen")]
    note_export(agreed.engine, None, None, "root")
    line = agreed.audit()[0]
    assert (line.actor, line.action, line.subject) == ("root", "feedback.export", "*")


@pytest.mark.parametrize(
    "say",
    [
        lambda said: said.rate("ann", AnswerRef("c-1"), False, " "),
        lambda said: said.rate("ann", AnswerRef("c-1"), False, SECRET),
        lambda said: said.rate("ann", AnswerRef("c-1"), False, "x" * (LONGEST_TEXT + 1)),
        lambda said: said.rate("ann", AnswerRef("c-1"), False, "half \ud800"),
        lambda said: said.rate("ann", AnswerRef("c-1"), False, "nul \0"),
        lambda said: said.prefer_answer("ann", AnswerRef("c-1"), AnswerRef("c-1")),
        lambda said: said.prefer_answer("ann", AnswerRef("c-1"), AnswerRef("elsewhere")),
        lambda said: said.prefer_text("ann", "", "a", "b"),
        lambda said: said.prefer_text("ann", [], "a", "b"),
        lambda said: said.prefer_text("ann", [{"role": "tool", "content": "x"}], "a", "b"),
        lambda said: said.prefer_text("ann", QUESTION, "a", "a"),
        lambda said: said.prefer_text("ann", "x" * (LONGEST_TEXT + 1), "a", "b"),
    ],
)
def test_what_makes_no_sense(agreed: Registry, say: Callable[[Any], None]) -> None:
    other = [{"role": "user", "content": "And of Sweden?"}]
    agreed.feedback.keep([answer(), answer(name="elsewhere", prompt=other, text="Stockholm.")])
    with pytest.raises(InvalidFeedback):
        say(agreed.feedback)
    assert count(agreed, RatingRow) == count(agreed, PreferenceRow) == 0


def test_an_answer_without_texts_can_be_rated_only(agreed: Registry) -> None:
    agreed.feedback.keep([answer(text=None), answer(name="c-2")])
    assert not agreed.feedback.rate("ann", AnswerRef("c-1"), True).has_texts
    with pytest.raises(TextsNotKept, match="cut short"):
        agreed.feedback.rate("ann", AnswerRef("c-1"), True, "Oslo.")
    with pytest.raises(TextsNotKept, match="cut short"):
        agreed.feedback.prefer_answer("ann", AnswerRef("c-2"), AnswerRef("c-1"))


def test_preferences_have_a_bound(agreed: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "MOST_PREFERENCES", 2)
    for text in ("a", "b", "a"):  # the third replaces the first
        agreed.feedback.prefer_text("ann", "Norway?", text, "c")
    with pytest.raises(QuotaExceeded):
        agreed.feedback.prefer_text("ann", "Norway?", "d", "c")


def test_a_deleted_user_leaves_nothing(agreed: Registry) -> None:
    agreed.feedback.keep([answer(), answer(name="c-2")])
    agreed.feedback.rate("ann", AnswerRef("c-1"), True)
    agreed.feedback.prefer_text("ann", "Norway?", "Oslo", "Bergen")
    agreed.accounts.delete_user("ann")
    assert [count(agreed, t) for t in (AnswerRow, RatingRow, PreferenceRow)] == [0, 0, 0]
    agreed.accounts.create_user("ann")
    assert not RegistryView(agreed).keeps_answers("ann")


def test_a_deleted_experiment_leaves_no_ratings(agreed: Registry) -> None:
    agreed.experiments.create("tone", [Arm.of("a", "base"), Arm.of("b", "base")])
    tone = {"experiment": "tone", "arm": "a"}
    agreed.feedback.keep([answer(**tone), answer("ben", "c-2", **tone)])
    agreed.feedback.rate("ann", AnswerRef("c-1"), True)
    agreed.feedback.rate("ben", AnswerRef("c-2"), True)
    agreed.experiments.delete("tone")
    with reading(agreed.engine) as session:
        left = session.scalars(select(RatingRow)).all()
    assert [(row.user_id, row.experiment, row.arm) for row in left] == [("ann", None, None)]
