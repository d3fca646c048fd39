"""Rates, intervals and tests against constants worked out by hand, and by simulation."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, norm

from bench.evaluation import metrics


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.2775328),  # z^2 / (n + z^2)
        (10, 10, 0.7224672, 1.0),  # n / (n + z^2)
        (5, 10, 0.2365931, 0.7634069),
        (95, 100, 0.8882495, 0.9784563),
        (1, 1, 0.2065493, 1.0),
    ],
)
def test_a_rate_has_wilsons_interval(k: int, n: int, low: float, high: float) -> None:
    rate = metrics.rate(k, n)
    assert (rate.k, rate.n, rate.value) == (k, n, k / n)
    assert rate.low == pytest.approx(low, abs=1e-6)
    assert rate.high == pytest.approx(high, abs=1e-6)


@pytest.mark.parametrize(("p", "n"), [(0.9, 100), (0.5, 100), (0.97, 300), (0.2, 50)])
def test_the_interval_holds_the_truth_about_95_times_of_100(p: float, n: int) -> None:
    """Summed over all outcomes instead of drawn: exact, where 2000 draws would leave 1 %."""
    held = 0.0
    for k in range(n + 1):
        rate = metrics.rate(k, n)
        held += float(binom.pmf(k, n, p)) * (rate.low <= p <= rate.high)
    assert 0.93 < held < 0.97


@pytest.mark.parametrize("n", [50, 100, 300, 1000])
def test_the_interval_holds_the_truth_on_average_and_nowhere_fails_badly(n: int) -> None:
    """Over p = 0.01, 0.011, ..., 0.99, summed over all outcomes. The mean is close to 0.95 and the
    least, at p near 0 or 1, no less than 0.838, the limit of the score interval's worst case
    (Agresti and Coull 1998, https://doi.org/10.2307/2685469)."""
    p = np.linspace(0.01, 0.99, 981)
    rates = [metrics.rate(k, n) for k in range(n + 1)]
    held = sum(binom.pmf(r.k, n, p) * ((r.low <= p) & (p <= r.high)) for r in rates)
    assert 0.948 < held.mean() < 0.957
    assert held.min() > 0.838
    assert held[(p > 0.1) & (p < 0.9)].min() > 0.915


def test_drawn_counts_fall_into_the_interval_95_times_of_100() -> None:
    rng = np.random.default_rng(0)
    for n in (50, 150, 400):
        low, high = np.array([metrics.rate(k, n)[3:] for k in range(n + 1)]).T
        p = rng.uniform(0.01, 0.99, 20_000)
        k = rng.binomial(n, p)
        assert ((low[k] <= p) & (p <= high[k])).mean() == pytest.approx(0.952, abs=0.006)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_an_empty_or_impossible_count_has_no_rate(k: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"got k = {k}, n = {n}"):
        metrics.rate(k, n)


def records() -> pd.DataFrame:
    """One example of each kind, targets as in a targeted attack."""
    return pd.DataFrame(
        [
            # label, target, clean_correct, adv_pred, adv_pred_8bit, violation
            (3, 4, True, 3, 3, ""),  # stands
            (3, 4, True, 5, 3, ""),  # falls, but not once it is rounded
            (3, 4, True, 5, 5, "left the ball"),  # the attack failed
            (3, 4, False, 3, 3, ""),  # wrong before, right after
            (4, 4, True, 4, 4, ""),  # is of the target class
            (3, 4, True, -1, -1, "the model's output is not finite"),
        ],
        columns=["label", "target", "clean_correct", "adv_pred", "adv_pred_8bit", "violation"],
    ).assign(rejection=-1, rejected_is_robust=False)


def test_robust_is_right_before_and_after_and_a_violation_is_a_failed_attack() -> None:
    assert metrics.robust_examples(records()).tolist() == [True, False, True, False, True, True]
    assert metrics.robust_examples_8bit(records()).tolist() == [True, True, True, False, True, True]


@pytest.mark.parametrize("is_robust", [True, False])
def test_a_rejected_adversarial_image_counts_as_declared_and_a_rejected_clean_one_never(
    is_robust: bool,
) -> None:
    rejected = records().assign(adv_pred=9, adv_pred_8bit=9, rejection=9, violation="")
    counted = rejected.assign(rejected_is_robust=is_robust)
    right = counted["clean_correct"].tolist()
    assert metrics.robust_examples(counted).tolist() == [each and is_robust for each in right]
    assert metrics.robust_examples_8bit(counted).tolist() == [each and is_robust for each in right]
    assert metrics.rejected_examples(counted).all()
    assert not metrics.rejected_examples(counted.assign(rejection=-1, adv_pred=-1)).any()


def test_eligible_is_right_before_and_not_of_the_target_class() -> None:
    assert metrics.eligible_examples(records()).tolist() == [True, True, True, False, False, True]
    untargeted = records().assign(target=-1)
    assert metrics.eligible_examples(untargeted).tolist() == [True, True, True, False, True, True]


def series(*values: int, start: int = 0) -> "pd.Series[bool]":
    return pd.Series([bool(v) for v in values], index=range(start, start + len(values)))


def test_the_worst_case_is_robust_where_every_attack_left_it_so() -> None:
    outcomes = [series(1, 1, 0, 1), series(1, 0, 0, 1), series(1, 1, 1, 0)]
    assert metrics.worst_case(outcomes).tolist() == [True, False, False, False]
    assert metrics.worst_case(outcomes[:1]).tolist() == [True, True, False, True]


def test_the_worst_case_of_nothing_or_of_other_examples_is_no_case() -> None:
    with pytest.raises(ValueError, match="at least one attack"):
        metrics.worst_case([])
    with pytest.raises(ValueError, match="the same examples"):
        metrics.worst_case([series(1, 0), series(1, 0, start=1)])


@pytest.mark.parametrize(
    ("first", "second", "p_value"),
    [
        (5, 0, 0.0625),  # 2 / 2^5
        (1, 5, 0.21875),  # 2 * (1 + 6) / 2^6
        (10, 1, 0.01171875),  # 2 * (1 + 11) / 2^11
        (3, 3, 1.0),
        (0, 0, 1.0),
        (1, 0, 1.0),
    ],
)
def test_a_paired_comparison_is_the_exact_test_on_those_that_differ(
    first: int, second: int, p_value: float
) -> None:
    a = series(*[1] * first, *[0] * second, 1, 1, 0, 0)
    b = series(*[0] * first, *[1] * second, 1, 1, 0, 0)
    assert metrics.mcnemar_test(a, b) == (first, second, pytest.approx(p_value, abs=1e-12))


def test_a_comparison_needs_the_same_examples() -> None:
    with pytest.raises(ValueError, match="the same examples"):
        metrics.mcnemar_test(series(1, 0), series(1, 0, start=1))


def drawn(rng: np.random.Generator, n: int, *breaks: float) -> list["pd.Series[bool]"]:
    """What attacks break of the same n examples, some of which are easy for all of them and some
    hard: on average, the shares given."""
    hard = rng.normal(size=n)
    outcomes = []
    for share in breaks:
        pull = 0.8 * hard + 0.6 * rng.normal(size=n)  # a standard normal, too
        outcomes.append(pd.Series(pull < norm.ppf(share)))
    return outcomes


def test_the_paired_test_gives_a_false_alarm_no_more_than_5_times_of_100() -> None:
    rng = np.random.default_rng(0)
    alarms = sum(
        metrics.mcnemar_test(*drawn(rng, 300, 0.4, 0.4)).p_value <= 0.05 for _ in range(2000)
    )
    assert 0.02 < alarms / 2000 <= 0.05  # an exact test of counts stays below its level


def test_the_paired_test_sees_a_difference_that_is_there() -> None:
    rng = np.random.default_rng(0)
    seen = sum(
        metrics.mcnemar_test(*drawn(rng, 1000, 0.4, 0.46)).p_value <= 0.05 for _ in range(200)
    )
    assert seen / 200 > 0.9


def test_p_values_are_corrected_as_holm_says() -> None:
    # 4 * 0.005, then 3 * 0.01, then 2 * 0.03, then 1 * 0.04, which may not fall below 0.06
    assert metrics.holm_correction([0.01, 0.04, 0.03, 0.005]) == pytest.approx(
        [0.03, 0.06, 0.06, 0.02]
    )
    assert metrics.holm_correction([0.5, 0.9, 0.4]) == [1.0, 1.0, 1.0]
    assert (metrics.holm_correction([0.2]), metrics.holm_correction([])) == ([0.2], [])


def test_over_many_comparisons_a_false_alarm_is_no_more_likely_than_5_of_100() -> None:
    """All pairs of five equally strong attacks, among them one that is stronger than all five:
    pairs share attacks and examples, so the tests depend on each other."""
    rng = np.random.default_rng(0)
    shares, alarms, bare, seen = (0.4, 0.4, 0.4, 0.4, 0.4, 0.5), 0, 0, 0
    pairs = list(itertools.combinations(range(6), 2))
    null = [b < 5 for _, b in pairs]
    for _ in range(400):
        attacks = drawn(rng, 400, *shares)
        p_values = [metrics.mcnemar_test(attacks[a], attacks[b]).p_value for a, b in pairs]
        corrected = np.array(metrics.holm_correction(p_values)) <= 0.05
        alarms += bool(corrected[null].any())
        bare += bool((np.array(p_values)[null] <= 0.05).any())
        seen += int(corrected[np.invert(null)].sum())
    assert alarms / 400 <= 0.05
    assert bare / 400 > 0.15  # what looking at each p-value alone would have called
    assert seen / 400 > 3.5  # of the five differences that are there
