"""The tables and the picture of docs/forgetting.md, from finished runs.

Owns the layout, in Markdown. Every rate has its 95 % interval and n; an interval over several
runs resamples questions, not answers, since one question is asked in every run.

    python -m benchmarks.forgetting_report benchmarks/results/forgetting.jsonl \\
        --picture docs/forgetting.png
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from math import isnan
from pathlib import Path

from adapters.statistics import Proportion, mean_of, paired_means
from benchmarks.forgetting_analysis import (
    Correlation,
    Course,
    Point,
    chosen_on_validation,
    correlation,
    courses,
    distances,
    facts_at,
    rate,
    read_runs,
    where,
)
from benchmarks.forgetting_data import MANNERS, PERSONAL
from benchmarks.forgetting_grid import CORE, DEFAULT, DPO, FIRST, LEARNING_RATE, OTHER_RATES, STEPS
from benchmarks.forgetting_plot import pareto
from benchmarks.forgetting_run import Record

ACCURACIES = (0.7, 0.8, 0.85, 0.9)
FIGURES = ("familiar", "unseen", "margin", "style", "facts")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="the runs.jsonl of benchmarks.forgetting")
    parser.add_argument("--picture", type=Path, help="also draw preference against facts, here")
    arguments = parser.parse_args()
    records = read_runs(arguments.runs)
    print(f"{cost(records)}\n")
    for title, lines in report(records).items():
        print(f"### {title}\n", *lines, "", sep="\n")
    if arguments.picture:
        settings = {method.name for method in CORE}
        of = where(headline(courses(records)), lambda p: p.seed == 0 and p.method in settings)
        pareto(of, arguments.picture)


def report(records: Sequence[Record]) -> dict[str, list[str]]:
    """Every table by its title, as lines of Markdown."""
    found = courses(records)
    first = headline(found)
    tables = {
        "All methods at the last step": last_step(where(first, lambda p: p.seed == 0)),
        "Facts kept at equal preference accuracy": matched(first),
        "Anchors against the default until now": anchors(
            where(found, lambda p: p.learning_rate == LEARNING_RATE)
        ),
        "Chosen on validation": chosen(where(found, lambda p: p.taste in FIRST)),
        "Every taste": tastes(where(found, lambda p: p.learning_rate == LEARNING_RATE)),
        "Learning rates": learning_rates(where(found, lambda p: p.taste in FIRST)),
        "Loss against distance": distance(records, found),
        "Seeds": seeds(first),
    }
    return {title: list(lines) for title, lines in tables.items()}


def headline(found: Sequence[Course]) -> list[Course]:
    """The runs of the two tastes that every method learns first, at the first learning rate."""
    return where(found, lambda p: p.taste in FIRST and p.learning_rate == LEARNING_RATE)


def cost(records: Sequence[Record]) -> str:
    spent = [sum(r["cpu seconds"].values()) for r in records if "cpu seconds" in r]
    return f"{len(spent)} runs, {sum(spent) / 3600:.2f} CPU hours, {rate(spent):.0f} s a run"


def last_step(found: Sequence[Course]) -> Iterator[str]:
    yield from _head("method", "familiar", "unseen", "margin", "exact", "facts kept", "n runs")
    for name, of in _by_method(found).items():
        points = [course[-1] for course in of]
        yield _row(name, *_cells(points), str(len(of)))


def matched(found: Sequence[Course]) -> Iterator[str]:
    """Facts at a preference accuracy, less DPO's in the same taste and seed."""
    yield from _head("method", *(f"at {accuracy:.0%}" for accuracy in ACCURACIES))
    rival = {_whose(course): course for course in found if course[-1].method == DPO.name}
    for name, of in _by_method(found).items():
        pairs = [(rival[_whose(course)], course) for course in of]
        yield _row(name, *(_at_equal(pairs, accuracy) for accuracy in ACCURACIES))


def anchors(found: Sequence[Course]) -> Iterator[str]:
    """Each anchor less hinge λ 0.02 of the same taste and seed: at equal preference, at the end."""
    yield from _head(
        "method", "facts at 90% preference", "last step: preference", "exact", "facts", "n runs"
    )
    rivals = {_whose(course): course for course in found if course[-1].method == DEFAULT.name}
    for name, of in _by_method(found).items():
        pairs = [(rivals[_whose(course)], course) for course in of if _whose(course) in rivals]
        if pairs and name.startswith("BAPO") and name != DEFAULT.name:
            last = [(theirs[-1], ours[-1]) for theirs, ours in pairs]
            cells = [_change(last, figure) for figure in ("preference", "style", "facts")]
            yield _row(name, _at_equal(pairs, ACCURACIES[-1]), *cells, str(len(pairs)))


def chosen(found: Sequence[Course]) -> Iterator[str]:
    """Each family's setting, rate and step, chosen on validation, seed 0; figures are of test."""
    yield from _head("family", "taste", "chosen", "familiar", "exact", "facts kept")
    seeds_of_all = where(found, lambda p: p.seed == 0)
    groups: dict[tuple[str, str], list[Course]] = defaultdict(list)
    for course in seeds_of_all:
        groups[course[-1].family, course[-1].taste].append(course)
    for (family, taste), of in groups.items():
        point = chosen_on_validation(of)
        told = f"{point.told}, lr {point.learning_rate:g}, step {point.step} (of {len(of)} runs)"
        cells = dict(zip(FIGURES, _cells([point]), strict=True))
        yield _row(
            family, taste, told.lstrip(", "), cells["familiar"], cells["style"], cells["facts"]
        )


def tastes(found: Sequence[Course]) -> Iterator[str]:
    yield from _head("taste", "method", "preference", "facts kept, step 64", "step 128", "n runs")
    chief = [method.name for method in CORE]
    for taste in dict.fromkeys(course[0].taste for course in found):
        for name in chief:
            of = where(found, lambda p, n=name, t=taste: (p.taste, p.method) == (t, n))  # type: ignore[misc]
            if of:
                last = [course[-1] for course in of]
                middle = [p for course in of for p in course if p.step == STEPS[-2]]
                yield _row(
                    taste,
                    name,
                    _estimate(last, "preference"),
                    _estimate(middle, "facts"),
                    _estimate(last, "facts"),
                    str(len(of)),
                )


def learning_rates(found: Sequence[Course]) -> Iterator[str]:
    """The core methods after the last step, at each rate."""
    yield from _head("method", "learning rate", "familiar", "exact", "facts kept", "n runs")
    for method in CORE:
        for speed in sorted((LEARNING_RATE, *OTHER_RATES)):
            of = where(
                found,
                lambda p, n=method.name, r=speed: (p.method, p.learning_rate) == (n, r),  # type: ignore[misc]
            )
            if of:
                cells = dict(zip(FIGURES, _cells([course[-1] for course in of]), strict=True))
                shown = (cells[name] for name in ("familiar", "style", "facts"))
                yield _row(method.name, f"{speed:g}", *shown, str(len(of)))


def distance(records: Sequence[Record], found: Sequence[Course]) -> Iterator[str]:
    """Facts lost against the distance of a taste from the base's voice, a method at a time."""
    far = distances(records)
    order = sorted((taste for taste in PERSONAL if taste in far), key=far.__getitem__)
    names = [f"{taste} {far[taste]:+.2f}" for taste in order]
    yield from _head("method", "step", *names, "r", "rank", "r of the five")
    alike = where(found, lambda p: p.learning_rate == LEARNING_RATE and p.seed == 0)
    for name, of in _by_method(alike).items():
        for step in STEPS[1:]:
            lost = {
                point.taste: rate(course[0].test.facts) - rate(point.test.facts)
                for course in of
                for point in course
                if point.step == step and point.taste in order
            }
            if lost.keys() == set(order) and len(order) > 3 and len(set(lost.values())) > 1:
                c = correlation([far[t] for t in order], [lost[t] for t in order])
                five = [taste for taste in order if taste not in MANNERS]
                alone = correlation([far[t] for t in five], [lost[t] for t in five])
                yield _row(
                    name,
                    str(step),
                    *(f"{lost[t]:.1%}" for t in order),
                    _correlated(c),
                    "–" if isnan(c.rank) else f"{c.rank:+.2f}",
                    _correlated(alone),
                )


def _correlated(c: Correlation) -> str:
    return "–" if isnan(c.r) else f"{c.r:+.2f} [{c.low:+.2f}, {c.high:+.2f}]"


def seeds(found: Sequence[Course]) -> Iterator[str]:
    """Facts kept and preference accuracy of each seed, where there is more than one."""
    yield from _head("taste", "method", "seed: familiar, facts kept at the last step")
    groups: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for course in found:
        groups[course[-1].taste, course[-1].method].append(course[-1])
    for (taste, name), points in groups.items():
        if len(points) > 1:
            shown = [
                f"{p.seed}: {rate(p.test.preference):.1%}, {rate(p.test.facts):.1%}"
                for p in sorted(points, key=lambda point: point.seed)
            ]
            yield _row(taste, name, " · ".join(shown))


def _by_method(found: Iterable[Course]) -> dict[str, list[Course]]:
    groups: dict[str, list[Course]] = defaultdict(list)
    for course in found:
        groups[course[-1].method].append(course)
    return groups


def _whose(course: Course) -> tuple[str, float, int]:
    return course[-1].taste, course[-1].learning_rate, course[-1].seed


def _cells(points: Sequence[Point]) -> list[str]:
    return [_estimate(points, name) for name in FIGURES]


def _estimate(points: Sequence[Point], name: str) -> str:
    """The mean over runs and items, with its interval.

    Of one run, and where all outcomes are alike and a bootstrap would be sure, it is Wilson's; else
    items are resampled, an item of several runs whole. Facts are everybody's, pairs a taste's own.
    """
    outcomes = {
        (p.taste, p.method, p.seed, place): outcome
        for p in points
        for place, outcome in enumerate(getattr(p.test, name))
    }
    if not outcomes:
        return "–"
    items = [(None if name == "facts" else whose, place) for whose, _, _, place in outcomes]
    if len(set(items)) == len(items) or len(set(outcomes.values())) == 1:
        known = dict(zip(items, outcomes.values(), strict=True))
        rates = Proportion.of(known.values())
        return _percent(rates.rate, *rates.interval)
    mean = mean_of(list(outcomes.values()), items)
    return _percent(mean.value, mean.low, mean.high)


def _change(pairs: Sequence[tuple[Point, Point]], name: str) -> str:
    """What the second of two runs has more than the first, in points, of the same items."""
    before, after, items = [], [], []
    for theirs, ours in pairs:
        before += getattr(theirs.test, name)
        after += getattr(ours.test, name)
        whose = None if name == "facts" else ours.taste
        items += [(whose, place) for place in range(len(getattr(ours.test, name)))]
    if before == after:
        return "0"
    c = paired_means(before, after, items)
    return f"{100 * c.difference:+.1f} [{100 * c.low:+.1f}, {100 * c.high:+.1f}], p {c.p_value:.2g}"


def _at_equal(pairs: Sequence[tuple[Course, Course]], accuracy: float) -> str:
    """Facts that the second of two runs keeps at that preference accuracy, and how many more."""
    both = [
        (before, after)
        for theirs, ours in pairs
        if (before := facts_at(theirs, accuracy)) and (after := facts_at(ours, accuracy))
    ]
    reached = f"{len(both)} of {len(pairs)}"
    if not both:
        return f"– ({reached})"
    before, after = (list(chain(*side)) for side in zip(*both, strict=True))
    if before == after:
        return f"{rate(after):.1%} ({reached})"
    c = paired_means(before, after, [place for facts, _ in both for place in range(len(facts))])
    change = f"{100 * c.difference:+.1f} [{100 * c.low:+.1f}, {100 * c.high:+.1f}]"
    return f"{rate(after):.1%}, {change} ({reached})"


def _percent(value: float, low: float, high: float) -> str:
    return f"{value:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def _head(*names: str) -> Iterator[str]:
    yield _row(*names)
    yield _row(*("---" for _ in names))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
