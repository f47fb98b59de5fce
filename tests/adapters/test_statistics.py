"""Intervals and tests against arithmetic by hand, published examples, and simulated coverage."""

from math import comb, inf, isinf

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from adapters.statistics import (
    Proportion,
    holm,
    mean_of,
    mean_share,
    paired_means,
    paired_rates,
    two_mean_shares,
    two_rates,
)


def test_wilson_by_hand() -> None:
    # n = 10, p = 0.8, z² = 3.84146: centre (0.8 + 0.192073) / 1.384146 = 0.716741,
    # half-width 1.959964 / 1.384146 · sqrt(0.016 + 0.00960365) = 0.226578
    assert Proportion(8, 10).interval == pytest.approx((0.490163, 0.943319), abs=1e-5)
    assert Proportion(0, 0).interval == (0, 1)
    assert Proportion(5, 5).interval[1] == 1
    assert str(Proportion(8, 10)) == "80.0% [49.0%, 94.3%] of 10"


def test_the_exact_interval_of_none_of_ten_is_one_minus_the_tenth_root() -> None:
    # Clopper-Pearson at 0 of n: high = 1 - (α/2)^(1/n)
    low, high = Proportion(0, 10).interval_at(0.95, "exact")
    assert (low, high) == pytest.approx((0, 1 - 0.025**0.1))


def test_mcnemar_counts_changed_items_only() -> None:
    # 8 gained, 1 lost, 91 as before: the binomial tail 2 · (1 + 9) / 2^9
    before = [True] * 50 + [False] * 41 + [False] * 8 + [True]
    after = [True] * 50 + [False] * 41 + [True] * 8 + [False]
    found = paired_rates(before, after)
    assert found.p_value == pytest.approx(2 * (comb(9, 0) + comb(9, 1)) / 2**9)
    assert found.difference == pytest.approx(0.07)
    assert found.low < 0.07 < found.high
    assert found.n == 100


def test_bonett_and_price_by_hand() -> None:
    # gained 3, lost 0 of 18: up = 4/20, down = 1/20, sqrt((0.25 - 0.0225) / 20) = 0.106654
    found = paired_rates([False] * 3 + [True] * 15, [True] * 18)
    assert (found.low, found.high) == pytest.approx((0.15 - 0.209037, 0.15 + 0.209037), abs=1e-5)


def test_nothing_changed_is_not_certainty() -> None:
    few = paired_rates([True] * 5, [True] * 5)
    many = paired_rates([True] * 500, [True] * 500)
    assert few.p_value == many.p_value == 1
    assert few.low < -0.3
    assert -0.01 < many.low < 0


def test_a_paired_rate_holds_its_coverage() -> None:
    draw = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        kinds = draw.choice(4, size=60, p=(0.8, 0.1, 0.02, 0.08))  # right, lost, gained, wrong
        found = paired_rates([k in (0, 1) for k in kinds], [k in (0, 2) for k in kinds])
        held += found.low <= -0.08 <= found.high
    assert 0.92 <= held / 400 <= 1


def test_users_not_items_are_the_sample() -> None:
    """Forty equal items of each of five users say no more than five users do."""
    users = [user for user in range(5) for _ in range(40)]
    after = [(-1.0, 0.0, 1.0, 2.0, 3.0)[user] for user in users]
    before = [0.0] * len(after)
    by_item = paired_means(before, after)
    by_user = paired_means(before, after, users)
    assert by_item.difference == by_user.difference == pytest.approx(1)
    assert by_user.high - by_user.low > 4 * (by_item.high - by_item.low)
    assert by_item.p_value < 0.01 < by_user.p_value


def test_a_paired_mean_holds_its_coverage() -> None:
    draw = np.random.default_rng(2)
    held = sum(
        found.low <= 0.3 <= found.high
        for found in (
            paired_means([0.0] * 50, list(draw.normal(0.3, 1, size=50))) for _ in range(100)
        )
    )
    assert 87 <= held <= 99


def test_a_user_counts_with_his_items() -> None:
    """One item of 1, and ten users of ten items of 0: of all items, not of the users' means."""
    users = ["one", *(f"user {u}" for u in range(10) for _ in range(10))]
    found = mean_of([1.0] + [0.0] * 100, users)
    assert found.value == pytest.approx(1 / 101)
    assert found.high < 0.06  # of three draws among eleven; their means would say 3 / 11


def test_more_confidence_is_a_wider_interval() -> None:
    values = [float(value) for value in range(20)]
    half, most = (mean_of(values, confidence=c) for c in (0.5, 0.99))
    assert most.low < half.low < half.high < most.high
    half_change, change = (paired_means([0.0] * 20, values, confidence=c) for c in (0.5, 0.99))
    assert (half_change.low, half_change.high) == (half.low, half.high)
    assert (change.low, change.high) == (most.low, most.high)


def test_the_same_figures_give_the_same_interval() -> None:
    values = [1.0, 4.0, 2.0, 8.0]
    assert mean_of(values) == mean_of(values)


def test_one_user_says_nothing_of_others() -> None:
    found = mean_of([1.0, 2.0], ["anne", "anne"])
    assert found.value == 1.5
    assert (found.low, found.high) == (-inf, inf)
    assert isinf(paired_means([0.0], [1.0]).high)


def test_two_rates_as_newcombe_has_them() -> None:
    # Newcombe (1998), table II, example (a), method 10: 56/70 - 48/80 is 0.2 [0.0524, 0.3339].
    found = two_rates(Proportion(48, 80), Proportion(56, 70))
    assert found.difference == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert 0.001 < found.p_value < 0.05
    assert found.n == 150


def test_two_rates_of_which_one_is_none_or_all() -> None:
    for one, other in ((Proportion(0, 5), Proportion(3, 6)), (Proportion(0, 5), Proportion(5, 5))):
        up, down = two_rates(one, other), two_rates(other, one)
        assert (up.p_value, up.difference) == (down.p_value, -down.difference)
        assert 0 < up.p_value < 0.1


def test_two_rates_without_a_case_or_without_a_difference() -> None:
    empty = two_rates(Proportion(0, 0), Proportion(3, 4))
    assert (empty.low, empty.high, empty.p_value) == (-1, 1, 1)
    assert two_rates(Proportion(4, 4), Proportion(9, 9)).p_value == 1


def test_holm_by_hand() -> None:
    # sorted 0.01·3, 0.03·2, 0.04·1, never below the one before: 0.03, 0.06, 0.06
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([]) == []


def test_holm_is_that_of_statsmodels() -> None:
    draw = np.random.default_rng(4)
    for n in (0, 1, 2, 3, 10, 40):
        p_values = [round(float(p), 2) for p in draw.uniform(size=n) ** 3]  # with ties
        ours = holm(p_values)
        theirs = multipletests(p_values, method="holm")[1] if n else []
        assert ours == pytest.approx(list(theirs))


@pytest.mark.parametrize("compare", [paired_rates, paired_means])
def test_other_items_before_and_after_are_no_pairs(compare: object) -> None:
    assert callable(compare)
    for before, after in (([], []), ([True], [True, False])):
        with pytest.raises(ValueError, match="the same items"):
            compare(before, after)


def test_weights_say_how_much_an_item_counts() -> None:
    """Two tokens at 1 and one at 4 are (2 · 1 + 1 · 4) / 3 = 2; outcomes may be booleans."""
    found = mean_of([1, 4], weights=[2, 1])
    assert found.value == pytest.approx(2)
    assert (found.low, found.high) == pytest.approx((1, 4))
    assert paired_means([1, 1], [2, 5], weights=[2, 1]).difference == pytest.approx(2)
    assert paired_means([True, False], [True, True]).difference == 0.5
    with pytest.raises(ValueError, match="its weight"):
        mean_of([1, 4], weights=[1, 0])


def test_welch_as_scipy_has_it() -> None:
    draw = np.random.default_rng(3)
    before, after = draw.random(9).tolist(), (0.3 + 0.7 * draw.random(14)).tolist()
    found = two_mean_shares(before, after)
    theirs = stats.ttest_ind(after, before, equal_var=False)
    low, high = theirs.confidence_interval()
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.p_value == pytest.approx(theirs.pvalue)
    assert found.difference == pytest.approx(np.mean(after) - np.mean(before))
    assert found.n == 23
    mean = mean_share(before)
    spread = stats.sem(before) * stats.t.ppf(0.975, 8)
    assert (mean.low, mean.high) == pytest.approx((mean.value - spread, mean.value + spread))


def test_shares_without_a_spread_are_not_certainty() -> None:
    sure = two_mean_shares([0.0] * 5, [1.0] * 5)
    assert sure.difference == 1.0
    assert sure.high == pytest.approx(1.0)
    assert 0 < sure.low < 0.6
    assert 0 < sure.p_value < 0.01
    same = two_mean_shares([1 / 3] * 4, [0.1 + 0.2 + 1 / 30] * 4)
    assert same.difference == pytest.approx(0, abs=0.05)
    assert same.low < -0.3
    assert same.p_value > 0.5
    one_sided = two_mean_shares([1.0] * 5, [0.0, 1.0, 1.0, 0.0])  # a spread on one side is enough
    assert one_sided.low < one_sided.difference == -0.5 < one_sided.high
    assert mean_share([1.0] * 5).low == pytest.approx(Proportion(5, 5).interval[0])
    assert mean_share([0.2, 1.0]).low == 0.0  # and never below


def test_too_few_users_tell_nothing() -> None:
    for before, after in (([], []), ([0.0], [1.0]), ([0.0, 0.5], [1.0]), ([], [1.0, 0.5])):
        found = two_mean_shares(before, after)
        assert (found.low, found.high, found.p_value) == (-1.0, 1.0, 1.0)
    assert (mean_share([]).low, mean_share([]).high) == (0.0, 1.0)


def test_welch_holds_its_coverage() -> None:
    draw = np.random.default_rng(5)
    held = 0
    for _ in range(400):
        before, after = draw.binomial(4, 0.5, 12) / 4, draw.binomial(4, 0.7, 20) / 4
        found = two_mean_shares(before.tolist(), after.tolist())
        held += found.low <= 0.2 <= found.high
    assert held >= 0.92 * 400
