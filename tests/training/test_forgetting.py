"""The forgetting benchmark in small, and the claim it is for: BAPO keeps what DPO forgets."""

from dataclasses import replace
from pathlib import Path

import pytest

from adapters.base import POCKET
from adapters.statistics import paired_rates
from benchmarks.forgetting import do, todo
from benchmarks.forgetting_analysis import (
    Figures,
    Point,
    chosen_on_validation,
    courses,
    facts_at,
    rate,
    read_runs,
)
from benchmarks.forgetting_data import small_world
from benchmarks.forgetting_grid import BASE, DPO, Run, grid, method
from benchmarks.forgetting_report import report
from benchmarks.forgetting_run import Bench, packed, train_and_measure, unpacked
from training.cache import JsonlCache
from training.model import load_base

DEFAULT = method("BAPO", "as it comes")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    world = small_world()
    questions = {side: asked[:80] for side, asked in world.questions.items()}
    work = tmp_path_factory.mktemp("forgetting")
    return Bench(load_base(POCKET, cpu=True), replace(world, questions=questions), work, (32, 64))


def test_at_equal_preference_accuracy_bapo_keeps_more_facts_than_dpo(bench: Bench) -> None:
    cache = JsonlCache(bench.work / "runs.jsonl")
    for run in [Run("pirate", BASE), Run("pirate", DPO), Run("pirate", DEFAULT)]:
        cache.add({run.key: do(bench, run)})
    dpo, bapo = courses(read_runs(cache.path))
    before = bapo[0].test
    assert rate(before.preference) < 0.1
    assert rate(before.facts) > 0.95

    for rival, ours in zip(dpo[1:], bapo[1:], strict=True):
        assert rate(ours.test.preference) == rate(rival.test.preference) == 1
        kept = paired_rates(rival.test.facts, ours.test.facts)
        assert kept.difference > 0
    assert kept.low > 0.5
    assert kept.p_value < 1e-6
    assert rate(ours.test.facts) > 0.85
    assert rate(ours.test.style) > 0.8 > rate(rival.test.style)


def test_a_run_is_the_same_whether_it_is_looked_at_or_not(bench: Bench) -> None:
    run = Run("pirate", DEFAULT)
    questions = {side: asked[:8] for side, asked in bench.world.questions.items()}
    quick = replace(bench, world=replace(bench.world, questions=questions))
    often = train_and_measure(replace(quick, steps=(3, 6)), run)
    once = train_and_measure(replace(quick, steps=(6,)), run)
    assert often["points"][-1] == once["points"][0]
    assert often["points"][0]["test"]["pairs"] != once["points"][0]["test"]["pairs"]


def test_the_page_has_the_tables_of_the_committed_runs() -> None:
    page = (ROOT / "docs" / "forgetting.md").read_text(encoding="utf-8").splitlines()
    tables = report(read_runs(ROOT / "benchmarks" / "results" / "forgetting.jsonl"))
    for title, lines in tables.items():
        assert len(lines) > 2, title
        assert [line for line in lines if line not in page] == []


def test_a_grid_goes_on_where_it_was(tmp_path: Path) -> None:
    runs = grid()[:7]
    file = tmp_path / "runs.jsonl"
    JsonlCache(file).add({run.key: {} for run in runs[:3]})
    with file.open("a") as torn:
        torn.write('{"key": "' + runs[3].key)  # a process was killed here
    assert list(todo(runs, JsonlCache(file), "1/1")) == runs[3:]
    assert [*todo(runs, JsonlCache(file), "1/2")] == [runs[4], runs[6]]
    assert [*todo(runs, JsonlCache(file), "2/2")] == [runs[3], runs[5]]


def test_every_run_of_the_grid_is_there_once() -> None:
    keys = [run.key for run in grid()]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("outcomes", [[], [False, False, True], [True] * 9])
def test_outcomes_come_back_in_their_order(outcomes: list[bool]) -> None:
    assert unpacked(packed(outcomes)) == outcomes


def point(step: int, preferred: int, kept: int) -> Point:
    """So many of ten pairs preferred and of ten facts kept, on both sides."""
    figures = Figures([n < kept for n in range(10)], [n < preferred for n in range(10)], [], [], [])
    return Point("t", "f", "", 1e-3, 0, step, figures, figures)


def test_facts_at_an_accuracy_are_read_off_the_straight_line() -> None:
    # From 4 to 8 preferred, 10 to 6 kept: at 7, three quarters of the way, 7 are kept.
    course = [point(0, 4, 10), point(1, 8, 6), point(2, 9, 0)]
    kept = facts_at(course, 0.7)
    assert kept is not None
    assert sum(kept) == pytest.approx(7)
    assert kept[5:7] == pytest.approx([1, 0.25])
    assert facts_at(course, 0.95) is None


def test_a_setting_is_chosen_for_preference_among_those_that_keep_the_facts() -> None:
    greedy = [point(0, 1, 10), point(1, 5, 10), point(2, 10, 4)]
    careful = [point(0, 1, 10), point(1, 6, 10), point(2, 6, 10)]
    assert chosen_on_validation([greedy, careful]) == careful[1]
    assert chosen_on_validation([[greedy[0], greedy[2]]]) == greedy[2]
