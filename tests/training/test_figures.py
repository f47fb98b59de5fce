"""From items to figures: by hand, and the report's way to the disk and back."""

from __future__ import annotations

from math import log
from pathlib import Path

import pytest

from training.errors import DataError
from training.evaluation.figures import MANY_USERS, compare, complete, figures_of
from training.evaluation.items import (
    Answer,
    ChoiceItem,
    ChoiceScore,
    Duel,
    DuelItem,
    Items,
    Outcome,
    PairItem,
    PairScore,
    QuestionItem,
    Refusal,
    RefusalItem,
    TaskItem,
    TextItem,
    TextScore,
)
from training.evaluation.results import BaseEntry, ModelEntry, Report, read_report, write_report


def question(before: bool, after: bool, user: str | None = None) -> QuestionItem:
    said = {"base": Answer(text="b", right=before), "a": Answer(text="a", right=after)}
    return QuestionItem(prompt="?", answers=["yes"], user=user, said=said)


def pair(margin: float | None, chosen: float, rejected: float) -> PairItem:
    score = PairScore(chosen=chosen, rejected=rejected, margin=margin)
    return PairItem(prompt="?", chosen="a", rejected="b", scores={"a": score})


def test_pairs_have_two_readings_and_a_tie_counts_half() -> None:
    items = Items(pairs=[pair(2, -3, -1), pair(-1, -1, -2), pair(0, -1, -1), pair(3, -1, -4)])
    figures = figures_of(items, "a")
    assert figures["preference.accuracy"].value == 2.5 / 4
    assert figures["preference.likelihood"].value == 2.5 / 4
    assert figures["preference.reward_margin"].value == 1
    assert figures["preference.accuracy"].n == 4
    assert figures_of(items, "base") == {}


def test_choices_have_two_readings() -> None:
    score = ChoiceScore(logprobs=[-3.0, -2.0], raw=1, normalised=0)
    item = ChoiceItem(prompt="?", choices=["long", "no"], answer=0, scores={"a": score})
    figures = figures_of(Items(choices=[item]), "a")
    assert figures["retention.choices"].value == 1
    assert figures["retention.choices_raw"].value == 0


def test_a_tie_that_was_lost_before_is_half_a_gain() -> None:
    scores = {"base": PairScore(chosen=-2, rejected=-1), "a": PairScore(chosen=-1, rejected=-1)}
    items = Items(pairs=[pair(0, -1, -1).model_copy(update={"scores": scores})] * 8)
    (change,) = compare(items, "base", "a")
    assert (change.figure, change.difference) == ("preference.likelihood", 0.5)


def test_only_items_that_both_have_are_compared() -> None:
    """Of six, the judge understood four of the base's and four of the adapter's, two of both."""
    told: list[tuple[bool | None, bool | None]]
    told = [(True, None), (True, None), (True, False), (False, False), (None, True), (None, True)]
    items = Items(
        refusals=[
            RefusalItem(
                prompt="?",
                said={"base": Refusal(text="", refused=b), "a": Refusal(text="", refused=a)},
            )
            for b, a in told
        ]
    )
    (change,) = compare(items, "base", "a")
    assert (change.n, change.difference, change.gained, change.lost) == (2, -0.5, 0, 1)
    assert figures_of(items, "a")["safety.refusals"].n == 4


def test_what_was_lost_and_gained_is_counted_item_by_item() -> None:
    """12 lost, 2 gained, 6 kept: difference -0.5, exact McNemar 2 · P(X <= 2 | 14) = 0.0129."""
    flips = [(True, False)] * 12 + [(False, True)] * 2 + [(True, True)] * 6
    (change,) = compare(Items(questions=[question(*f) for f in flips]), "base", "a")
    assert (change.figure, change.gained, change.lost) == ("retention.facts", 2, 12)
    assert change.difference == -0.5
    assert change.p_value == pytest.approx(0.0129, abs=1e-4)
    assert change.p_adjusted == change.p_value


def test_holm_counts_everything_that_was_compared() -> None:
    items = Items(
        questions=[question(True, False)] * 6,  # p = 2 · 0.5 ** 6 = 0.03125
        pairs=[
            pair(1, -1, -2).model_copy(
                update={"scores": {m: PairScore(chosen=-1, rejected=-2) for m in ("base", "a")}}
            )
        ],  # p = 1
    )
    found = {c.figure: c for c in compare(items, "base", "a")}
    assert found["retention.facts"].p_value == pytest.approx(0.03125)
    assert found["retention.facts"].p_adjusted == pytest.approx(0.0625)


def test_many_users_are_resampled_and_not_their_items() -> None:
    """Each user's eight answers are alike, so eighty answers say as little as ten."""
    alone = Items(questions=[question(True, u % 2 == 0) for u in range(10) for _ in range(8)])
    owned = Items(
        questions=[question(True, u % 2 == 0, f"u{u}") for u in range(10) for _ in range(8)]
    )
    of_items, of_users = (figures_of(i, "a")["retention.facts"] for i in (alone, owned))
    assert of_items.value == of_users.value == 0.5
    assert (of_items.users, of_users.users) == (None, MANY_USERS)
    widths = []
    for figure in (of_items, of_users):
        assert figure.low is not None
        assert figure.high is not None
        widths.append(figure.high - figure.low)
    assert widths[1] > 2 * widths[0]
    assert compare(owned, "base", "a")[0].p_value > compare(alone, "base", "a")[0].p_value


def test_a_perplexity_is_per_token_over_all_windows() -> None:
    """90 tokens at log 2 and 10 at log 32 are exp(0.9 log 2 + 0.1 log 32) = 2 ** 1.4."""
    windows = [(90, 2), (10, 32)]
    items = Items(
        texts=[
            TextItem(source="t", start=0, tokens=n, scores={"base": TextScore(nll=n * log(base))})
            for n, base in windows
        ]
    )
    figure = figures_of(items, "base")["retention.perplexity"]
    assert figure.value == pytest.approx(2**1.4)
    assert figure.n == 100
    assert figure.low == pytest.approx(2)
    assert figure.high == pytest.approx(32)
    one = Items(texts=items.texts[:1])
    assert figures_of(one, "base")["retention.perplexity"].low is None  # one says nothing


def test_duels_are_won_of_those_that_could_be_read() -> None:
    outcomes: list[Outcome] = [*["win"] * 6, "tie", "unreadable", "loss"]  # type: ignore[list-item]
    duels = [Duel(model="a", against="base", outcome=o, said=["A", "B"]) for o in outcomes]
    items = Items(duels=[DuelItem(prompt="?", duels=[duel]) for duel in duels])
    figures = figures_of(items, "a")
    assert figures["preference.winrate"].value == 6.5 / 8
    assert figures["preference.winrate"].n == 8
    assert figures["preference.unreadable"].value == 1 / 9
    (change,) = compare(items, "base", "a")
    assert change.difference == 5 / 8
    assert (change.gained, change.lost) == (6, 1)
    assert change.p_value == pytest.approx(16 / 128)  # sign test: 2 (1 + 7) / 2 ** 7


def test_tasks_have_figures_under_the_names_they_were_asked_for() -> None:
    items = Items(
        tasks=[
            TaskItem(
                task=t,
                groups=["g", "t1"] if t == "t1" else ["g"],
                document=n,
                metrics={"base": {"acc": float(n < k)}},
            )
            for t, k in (("t1", 1), ("t2", 3))
            for n in range(4)
        ]
    )
    figures = figures_of(items, "base")
    assert figures.keys() == {"tasks.g.acc", "tasks.t1.acc"}
    assert (figures["tasks.g.acc"].value, figures["tasks.g.acc"].n) == (0.5, 8)
    assert figures["tasks.g.acc"].kind == "rate"


def test_a_report_comes_back_from_the_disk_as_it_was(tmp_path: Path) -> None:
    report = Report(
        base=BaseEntry(name="pocket", fingerprint="sha256:0"),
        models=[ModelEntry(name="base"), ModelEntry(name="a")],
        items=Items(questions=[question(True, False), question(True, True)]),
        seed=1,
    )
    complete(report)
    assert report.compared("a").keys() == {"retention.facts"}
    path = write_report(report, tmp_path / "r")
    assert read_report(path) == read_report(path.parent) == report
    assert [p.name for p in path.parent.iterdir()] == ["report.json"]
    path.write_text(path.read_text().replace('"seed": 1', '"sead": 1'))
    with pytest.raises(DataError, match="is no evaluation's report: seed"):
        read_report(path)
    with pytest.raises(DataError, match="There is no report"):
        read_report(tmp_path / "nothing.json")
