"""Rates and differences with their uncertainty: the one place where both rooms get statistics.

Owns which interval and which test is used for what; the arithmetic is statsmodels' and scipy's.
Refuses to know of models, users and files. Nothing is said without its interval and its n:
a rate is a `Proportion`, a mean an `Estimate`, a difference a `Comparison`. Comparisons
are `after - before`, so a loss is negative. Importing it loads pandas behind statsmodels (about a
second): import it where a result is asked for, not where a server starts.

    one rate                      Proportion                Wilson, or exact (Clopper-Pearson)
    a mean over items             mean_of                   bootstrap, resampled by user
    same items, right or wrong    paired_rates              Bonett-Price interval, exact McNemar
    same items, any figure        paired_means              paired bootstrap, resampled by user
    other items, right or wrong   two_rates                 Newcombe's interval, score test
    a share of each user          mean_share                Student's interval
    shares of other users         two_mean_shares           Welch's interval and test
    several p-values              holm                      Holm's step-down
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import (
    confint_proportions_2indep,
    proportion_confint,
    test_proportions_2indep,
)
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

Interval = tuple[float, float]
Figures = NDArray[np.float64]
"""One dimension: a figure of each item, or of each user."""

RateInterval = Literal["wilson", "exact"]

CONFIDENCE = 0.95
RESAMPLES = 4_000
SEED = 20_240_693
"""The same figures give the same interval, whenever and by whomever they are computed."""


@dataclass(frozen=True)
class Proportion:
    """`hits` of `n` cases; ties may count half."""

    hits: float
    n: int

    @property
    def rate(self) -> float:
        """hits / n, in [0, 1]; 0 where there was no case."""
        return self.hits / self.n if self.n else 0.0

    @property
    def interval(self) -> Interval:
        """Wilson's 95 % interval (1927), which stays in [0, 1] and holds at 0 and at n."""
        return self.interval_at(CONFIDENCE)

    def interval_at(self, confidence: float, method: RateInterval = "wilson") -> Interval:
        """Two-sided; `exact` is Clopper-Pearson, which never covers less than it says."""
        if not self.n:
            return 0.0, 1.0
        low, high = proportion_confint(
            self.hits, self.n, 1 - confidence, "beta" if method == "exact" else "wilson"
        )
        return max(0.0, float(low)), min(1.0, float(high))

    @classmethod
    def of(cls, outcomes: Iterable[bool | float]) -> "Proportion":
        cases = [float(outcome) for outcome in outcomes]
        return cls(sum(cases), len(cases))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.rate:.1%} [{low:.1%}, {high:.1%}] of {self.n}"


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` items and its interval."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}] of {self.n}"


@dataclass(frozen=True)
class Comparison:
    """`after - before`, its interval, and how surprising it were if nothing had changed.

    `n` counts items; of two groups of different items it counts both together.
    """

    difference: float
    low: float
    high: float
    p_value: float
    n: int

    def __str__(self) -> str:
        return (
            f"{self.difference:+.3g} [{self.low:+.3g}, {self.high:+.3g}],"
            f" p = {self.p_value:.2g}, n = {self.n}"
        )


def mean_of(
    values: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    *,
    weights: Sequence[float] | None = None,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """The mean of `values` and its bootstrap interval, infinite where there is but one user.

    `groups` says whose each item is: then whole users are resampled, not items, since the items
    of one user are alike (Davison and Hinkley 1997, section 3.8). `weights` say how much each
    item counts, e.g. its tokens. Raises ValueError without values.
    """
    figures, weight = _weighed(values, weights)
    low, high = _bootstrap(figures, groups, confidence, weight)
    return Estimate(float(np.average(figures, weights=weight)), low, high, len(values))


def paired_rates(
    before: Sequence[bool], after: Sequence[bool], *, confidence: float = CONFIDENCE
) -> Comparison:
    """The same items right or wrong, before and after: exact McNemar test.

    The interval is Bonett and Price's (2012), which is honest where nothing or everything
    changed and the bootstrap would be sure. Raises ValueError without items.
    """
    _same_items(before, after)
    n = len(before)
    gained = sum(b and not a for a, b in zip(before, after, strict=True))
    lost = sum(a and not b for a, b in zip(before, after, strict=True))
    # Bonett and Price: one case is added to each kind of change, two to n.
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    spread = _z(confidence) * sqrt((up + down - (up - down) ** 2) / (n + 2))
    p_value = float(mcnemar([[0, lost], [gained, 0]], exact=True).pvalue) if gained + lost else 1.0
    low, high = max(-1.0, up - down - spread), min(1.0, up - down + spread)
    return Comparison((gained - lost) / n, low, high, p_value, n)


def paired_means(
    before: Sequence[float],
    after: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    *,
    weights: Sequence[float] | None = None,
    confidence: float = CONFIDENCE,
) -> Comparison:
    """The same items measured before and after: paired bootstrap, by user where `groups` is given.

    The p-value is of the permutation test that turns the signs of differences, of all of a user's
    at once where there are users. `weights` as in `mean_of`. Raises ValueError without items.
    """
    _same_items(before, after)
    change, weight = _weighed(np.subtract(after, before, dtype=np.float64), weights)
    mean = float(np.average(change, weights=weight))
    low, high = _bootstrap(change, groups, confidence, weight)
    sums, _ = _by_group(change, groups, weight)
    if len(sums) == 1:
        return Comparison(mean, low, high, 1.0, len(change))
    p_value = stats.permutation_test(
        (sums,),
        lambda sums, axis: sums.sum(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=_batch(sums),
        rng=np.random.default_rng(SEED),
    ).pvalue
    return Comparison(mean, low, high, float(p_value), len(change))


def two_rates(
    before: Proportion, after: Proportion, *, confidence: float = CONFIDENCE
) -> Comparison:
    """Rates on different items, as of two arms of an experiment: Newcombe's interval, score test.

    Without a case on one side nothing is known: the interval is [-1, 1].
    """
    n = before.n + after.n
    difference = after.rate - before.rate
    if not before.n or not after.n:
        return Comparison(difference, -1.0, 1.0, 1.0, n)
    counts = (after.hits, after.n, before.hits, before.n)
    low, high = confint_proportions_2indep(
        *counts, method="newcomb", compare="diff", alpha=1 - confidence
    )
    hits = after.hits + before.hits
    if hits in (0, n):  # where all cases are equal there is nothing to test
        return Comparison(difference, float(low), float(high), 1.0, n)
    # The test is the same both ways, but statsmodels divides by the second rate, to tell a ratio.
    first, second = (after, before) if before.hits else (before, after)
    p_value = test_proportions_2indep(
        first.hits, first.n, second.hits, second.n, method="score", compare="diff"
    ).pvalue
    return Comparison(difference, float(low), float(high), float(p_value), n)


def mean_share(shares: Sequence[float], *, confidence: float = CONFIDENCE) -> Estimate:
    """The mean of figures in [0, 1], one of each user, and Student's interval within [0, 1].

    Where all figures are equal nothing is known of their spread: then users count as right or
    wrong, which no figures of that mean could vary more than, and the interval is Wilson's.
    """
    n = len(shares)
    if not n:
        return Estimate(0.0, 0.0, 1.0, 0)
    mean = float(np.mean(shares))
    if _all_equal(shares):
        low, high = Proportion(mean * n, n).interval_at(confidence)
    else:
        low, high = DescrStatsW(shares).tconfint_mean(alpha=1 - confidence)
    return Estimate(mean, max(0.0, float(low)), min(1.0, float(high)), n)


def two_mean_shares(
    before: Sequence[float], after: Sequence[float], *, confidence: float = CONFIDENCE
) -> Comparison:
    """Figures in [0, 1], one of each user, of other users before than after: Welch's test (1947).

    Where within each group all are equal, users count as right or wrong (`two_rates`), which is
    careful; a group of one or none tells nothing. `n` counts users.
    """
    n = len(before) + len(after)
    if min(len(before), len(after)) < 2:
        difference = float(np.mean(after) - np.mean(before)) if before and after else 0.0
        return Comparison(difference, -1.0, 1.0, 1.0, n)
    if _all_equal(before) and _all_equal(after):
        return two_rates(Proportion.of(before), Proportion.of(after), confidence=confidence)
    groups = CompareMeans(DescrStatsW(after), DescrStatsW(before))
    low, high = groups.tconfint_diff(alpha=1 - confidence, usevar="unequal")
    p_value = groups.ttest_ind(usevar="unequal")[1]
    difference = float(np.mean(after) - np.mean(before))
    return Comparison(difference, max(-1.0, float(low)), min(1.0, float(high)), float(p_value), n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p-value as it counts when all were looked at (Holm 1979), in their order.

    By hand, for statsmodels' multipletests collects the garbage of the whole process at every
    call: 0.4 s with torch in memory, and a server would stand still meanwhile.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    counted = p[order] * np.arange(len(p), 0, -1)  # the smallest as often as there are any
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(counted), 1.0)
    return [float(value) for value in adjusted]


def _all_equal(figures: Sequence[float]) -> bool:
    """Up to what is lost in dividing."""
    return max(figures) - min(figures) < 1e-9


def _same_items(before: Sequence[object], after: Sequence[object]) -> None:
    if not before or len(before) != len(after):
        raise ValueError("a paired comparison needs the same items before and after, at least one")


def _z(confidence: float) -> float:
    return float(stats.norm.ppf(0.5 + confidence / 2))


def _weighed(
    values: Sequence[float] | Figures, weights: Sequence[float] | None
) -> tuple[Figures, Figures]:
    """The values, and what each of them counts."""
    figures = np.asarray(values, dtype=np.float64)
    weight = np.ones(len(figures)) if weights is None else np.asarray(weights, dtype=np.float64)
    if not len(figures):
        raise ValueError("there are no values")
    if len(weight) != len(figures) or (weight <= 0).any():
        raise ValueError("every value needs its weight, above 0")
    return figures, weight


def _bootstrap(
    values: Figures, groups: Sequence[Hashable] | None, confidence: float, weights: Figures
) -> Interval:
    """Percentile interval of the mean of all items, users (or else items) drawn anew."""
    sums, sizes = _by_group(values, groups, weights)
    if len(sums) == 1:  # one user says nothing of others
        return -inf, inf
    found = stats.bootstrap(
        (sums, sizes),
        lambda sums, sizes, axis: sums.sum(axis) / sizes.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        confidence_level=confidence,
        n_resamples=RESAMPLES,
        batch=_batch(sums),
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(found.low), float(found.high)


def _by_group(
    values: Figures, groups: Sequence[Hashable] | None, weights: Figures
) -> tuple[Figures, Figures]:
    """Weighted sum and weight of each user's items, (g,) each; without users each is its own."""
    if groups is None:
        return values * weights, weights
    place = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    of_item = np.array([place[group] for group in groups])
    if len(of_item) != len(values):
        raise ValueError("every item needs its group")
    sums: Figures = np.bincount(of_item, weights=values * weights).astype(np.float64)
    sizes: Figures = np.bincount(of_item, weights=weights).astype(np.float64)
    return sums, sizes


def _batch(sums: Figures) -> int:
    """Resamples drawn together, so that memory stays bounded however many items there are."""
    return max(1, 2_000_000 // len(sums))
