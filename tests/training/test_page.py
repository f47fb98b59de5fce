"""`report.html`: what it shows, that texts stay texts, and how a real browser takes it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Browser

from adapters.artifact import HISTORY_FILE
from training.evaluation.figures import complete
from training.evaluation.items import (
    Answer,
    DriftItem,
    DriftScore,
    Items,
    PairItem,
    PairScore,
    QuestionItem,
)
from training.evaluation.page import render, write_page
from training.evaluation.page.curves import read_history
from training.evaluation.page.drawing import LONGEST_NAME, told_apart
from training.evaluation.page.examples import fates
from training.evaluation.page.pareto import frontier, points_of
from training.evaluation.page.words import compare_words
from training.evaluation.results import BaseEntry, History, ModelEntry, Report

from browser import chromium, page_of

HOSTILE = (
    "</style><script>alert('$x_1$')</script>"
    "<img src=https://evil.example/x onerror=alert(1)> & \x07"
)
NAMES = ("base", "careful", "$\\frac{1}{$ <b>bold</b>")
N = 40


def right(number: int, model: str) -> bool:
    """The base knows all but every tenth; the careful one lost one, the bold one every third."""
    lost = {"base": False, "careful": number == 1}.get(model, number % 3 == 0)
    return number % 10 != 9 and not lost


def pair_score(number: int, model: str) -> PairScore:
    gain = {"base": 0.0, "careful": 3.0}.get(model, 9.0) + number / N
    margin = None if model == "base" else gain
    return PairScore(chosen=-20.0 + gain, rejected=-18.0, margin=margin)


def drift_score(number: int, model: str) -> DriftScore:
    kl = {"base": 0.0, "careful": 0.02}.get(model, 1.5) * (1 + number / N)
    return DriftScore(
        kl=kl, log_ratio=-kl, entropy=0.3, text=f"{model} says {number}", length=4, cut=False,
        repetition=0.0, changed=model != "base",
    )  # fmt: skip


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """Two adapters and the base on 40 of each kind of item, texts and names as bad as can be."""
    items = Items(
        pairs=[
            PairItem(
                prompt=f"{HOSTILE} {n}",
                chosen=f"good {HOSTILE}",
                rejected=f"bad {HOSTILE}",
                scores={name: pair_score(n, name) for name in NAMES},
            )
            for n in range(N)
        ],
        questions=[
            QuestionItem(
                prompt=f"Question {n}? {HOSTILE}",
                answers=["Oslo"],
                said={
                    name: Answer(
                        text=f"It is {'Oslo' if right(n, name) else HOSTILE}.", right=right(n, name)
                    )
                    for name in NAMES
                },
            )
            for n in range(N)
        ],
        drift=[
            DriftItem(
                of=of, prompt=f"Say {n}", base_answer="Oslo", tokens=3,
                scores={name: drift_score(n, name) for name in NAMES},
            )
            for of in ("user", "general")
            for n in range(N)
        ],
    )  # fmt: skip
    models = [ModelEntry(name="base")]
    for number, name in enumerate(NAMES[1:]):
        folder = tmp_path / f"adapter{number}"
        folder.mkdir()
        steps = [
            {
                "step": s,
                "loss": 0.7 - s / 100,
                "rewards/accuracies": s / 40,
                "rewards/chosen": s / 9,
            }
            for s in range(1, 41)
        ]
        looks = [{"step": s, "drift/kl": s / 100} for s in (10, 20, 30, 40)]
        content = {"schema_version": 1, "steps": steps, "evaluations": [], "drift": looks}
        (folder / HISTORY_FILE).write_text(json.dumps(content))
        models.append(ModelEntry(name=name, path=str(folder)))
    base = BaseEntry(name=HOSTILE, fingerprint="sha256:0")
    return complete(Report(base=base, models=models, items=items, seed=1))


def test_strangers_texts_stay_texts(report: Report) -> None:
    page = render(report)
    body = page[page.index("<body>") :]
    assert not re.search(r"<(script|img|iframe|link|object|embed)\b", page, re.IGNORECASE)
    assert not re.search(r"<[^>]+\son\w+\s*=", page)
    assert page.count("</style>") == 1
    assert "&lt;script&gt;alert" in body
    assert "<b>bold" not in page
    # Nothing refers to anything outside the page.
    assert set(re.findall(r'(?:href|src)="([^"#]*)', page)) == {""}
    assert "url(" not in re.sub(r"url\(#\w+\)", "", page)


def test_pictures_do_not_clash_in_one_page(report: Report) -> None:
    page = render(report)
    names = re.findall(r'\bid="([^"]+)"', page)
    assert len(set(names)) == len(names) > 0
    assert set(re.findall(r'(?:href="#|url\(#)([\w-]+)', page)) <= set(names)


def test_what_was_lost_and_gained_is_counted_and_shown_side_by_side(report: Report) -> None:
    questions, pairs = fates(report, NAMES[1], "base")
    assert questions.counts == {"lost": 1, "gained": 0, "retained": 35, "wrong in both": 4}
    assert pairs.counts == {"lost": 0, "gained": 40, "retained": 0, "wrong in both": 0}
    (lost,) = questions.shown["lost"]
    assert "".join(part.text for part in lost.before) == "It is Oslo."
    assert [part.text for part in lost.before if part.changed] == [" Oslo."]
    assert lost.wanted == "Oslo"
    assert len(questions.shown["retained"]) == 10
    assert f"{questions.kind}: retained, 10 of 35" in render(report)


@given(st.text(), st.text())
def test_the_parts_of_a_comparison_are_its_texts(before: str, after: str) -> None:
    was, now = compare_words(before, after)
    assert "".join(part.text for part in was) == before
    assert "".join(part.text for part in now) == after
    shared = [" ".join(p.text for p in parts if not p.changed).split() for parts in (was, now)]
    assert shared[0] == shared[1]


def test_the_frontier_is_what_nobody_beats_in_both(report: Report) -> None:
    points = points_of(report, "preference.accuracy", "retention.facts")
    assert [(p.name, p.x.value, p.y.value) for p in points] == [
        ("base", 0.5, 0.9),
        ("careful", 1.0, 0.875),
        (NAMES[2], 1.0, pytest.approx(0.6)),
    ]
    assert [p.name for p in frontier(points)] == ["base", "careful"]
    assert frontier(points[:1]) == points[:1]


def test_a_history_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / HISTORY_FILE
    huge, deep = f'{{"steps": [{{"step": 1{"0" * 400}}}]}}', "[" * 10**6
    lines = ("", "[]", '{"steps": 3}', '{"steps": [{"loss": 1}]}', '{"steps": [7]}', huge, deep)
    for content in (*lines, '{"steps": [{"step": NaN}]}'):
        file.write_text(content)
        assert read_history("a", tmp_path) is None
    file.write_text('{"steps": [{"step": 1, "loss": 0.5, "note": "x", "lr": Infinity}]}')
    found = read_history("a", tmp_path)
    assert found is not None
    assert found.steps == [{"step": 1.0, "loss": 0.5}]


def test_long_names_fit_and_are_told_apart() -> None:
    shared, rest = "acme-support-tone/", "-2026-11-25T04-20-with-a-very-long-name"
    assert told_apart(["base", f"{shared}careful{rest}", f"{shared}bold{rest}"]) == [
        "base",
        "…pport-tone/careful-2026-11-25T…",
        "…support-tone/bold-2026-11-25T0…",
    ]
    same = told_apart(["q" * 50, "q" * 50, "ab" * 30])
    assert len(set(same)) == 3
    assert all(len(name) <= LONGEST_NAME + 3 for name in same)


def test_versions_of_a_registry_have_no_curves_and_the_page_says_so(report: Report) -> None:
    told = "there are no training curves"
    report.history = History(versions=list(NAMES[1:]), first=None, losses=[])
    assert told not in render(report)  # folders have them
    for model in report.models:
        model.path = None
    page = render(report)
    assert told in page
    assert 'id="training"' not in page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (1280, "dark"), (360, "light")], ids=str
)
def test_a_real_browser_shows_it_without_network_or_complaint(
    browser: Browser, report: Report, tmp_path: Path, width: int, scheme: str
) -> None:
    path = write_page(report, tmp_path / "report")
    view = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
    with page_of(browser, path.as_uri(), **view) as (page, seen):
        assert seen.requests == [path.as_uri()]
        assert seen.complaints == []
        assert page.get_by_role("table").count() == 1  # the others are folded
        pictures = page.get_by_role("img")
        assert pictures.count() == 4
        for number in range(4):
            drawn = pictures.nth(number).locator("svg").bounding_box()
            assert drawn is not None
            assert drawn["width"] > min(width, 400) / 2 < drawn["height"] * 2
            assert NAMES[2] in str(pictures.nth(number).get_attribute("aria-label"))
        # Nothing is wider than the screen; what is wide scrolls by itself.
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width
        ink, paper = (
            page.evaluate(f"getComputedStyle(document.body).{name}")
            for name in ("color", "backgroundColor")
        )
        assert (_light(ink) > _light(paper)) == (scheme == "dark")
        drawn_in = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
        assert drawn_in == ink
        folded = page.locator("details:not([open]) article").first
        assert not folded.is_visible()
        page.emulate_media(media="print")
        assert folded.is_visible()
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"


def test_legends_stay_within_their_pictures(
    browser: Browser, report: Report, tmp_path: Path
) -> None:
    """Eight adapters with names as long as paths, one of which matplotlib would hide."""
    names = [f"_runs/{n}/{'with-a-long-name-' * 4}" for n in range(8)]
    for pair in report.items.pairs:
        pair.scores |= dict.fromkeys(names, pair.scores[NAMES[2]])
    for said in report.items.drift:
        said.scores |= dict.fromkeys(names, said.scores[NAMES[2]])
    for question in report.items.questions:
        question.said |= dict.fromkeys(names, question.said[NAMES[2]])
    report.models += [ModelEntry(name=name) for name in names]
    path = write_page(complete(report), tmp_path / "report")
    with page_of(browser, path.as_uri(), viewport={"width": 1280, "height": 900}) as (page, _):
        outside = page.evaluate(OUTSIDE)
        assert outside == []
        pictures = page.locator("figure svg").all_text_contents()
        assert len(pictures) == 4
        assert all("_runs/7" in shown for shown in pictures[:3])  # the fourth is of training


OUTSIDE = """[...document.querySelectorAll("figure svg")].flatMap(svg => {
    const whole = svg.getBoundingClientRect();
    return [...svg.querySelectorAll("text")].filter(text => {
        const box = text.getBoundingClientRect();
        return box.left < whole.left - 1 || box.right > whole.right + 1;
    }).map(text => text.textContent);
})"""


def _light(colour: str) -> int:
    return sum(int(part) for part in re.findall(r"\d+", colour)[:3])
