"""Define every rate and every test between outcomes; nothing else in bench defines one.

n = examples in the cell. An example the model gets wrong without attack is not attacked and is not
robust.
  clean accuracy      = correct before / n
  robust accuracy     = correct before and after / n
  attack success rate = fooled / eligible: (correct before, wrong after) / correct before; targeted
                        (correct before, label != target, prediction after = target) /
                        (correct before, label != target)
  rejection           = by a model's detector: a rejected clean image is not correct; a rejected
                        adversarial one counts as correct after, or as wrong, as the entry says
  worst case          = an example is robust if every attack left it correct
A violation (an image that breaks the threat model) is a failed attack on that example, never a
success. Counts (k, n) are stored; every rate has a 95 % Wilson interval; an empty set has no rate.
Two outcomes of the same examples are compared by the exact McNemar test, many pairs with Holm's
correction.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from scipy.stats import binomtest

SIGNIFICANCE_LEVEL = 0.05
"""Two outcomes differ by more than chance if their p-value, corrected for all comparisons of the
run (`holm_correction`), is at most this: one false call in twenty runs, not in twenty rows."""

Outcomes: TypeAlias = "pd.Series[bool]"
"""Yes or no for each example of a cell."""
Counts: TypeAlias = "pd.Series[int]"
"""For each example, in how many of several cells it has the outcome."""


class Rate(NamedTuple):
    """k of n, with its 95 % Wilson score interval (Wilson 1927)."""

    k: int
    n: int
    value: float
    low: float
    high: float


class McNemarTest(NamedTuple):
    """Two outcomes of the same examples: how many each alone has, and the exact test."""

    only_first: int
    only_second: int
    p_value: float
    """Two-sided exact McNemar test (McNemar 1947): a fair coin's chance of so uneven a split."""


class PairedChange(NamedTuple):
    """What is lost and gained between two outcomes of the same examples."""

    lost: tuple[int, ...]
    """Ids of the examples with the outcome before and without it after."""
    gained: tuple[int, ...]
    p_value: float
    """One-sided exact sign test, of yes and no McNemar's: a fair coin's chance of at least so many
    losses among all that changed. Swapped, the same two outcomes are tested for a gain."""


def rate(k: int, n: int) -> Rate:
    """Compute the rate k / n with its 95 % Wilson score interval.

    Args:
        k: Number of examples with the outcome.
        n: Number of examples.

    Returns:
        Counts, value and interval.

    Raises:
        ValueError: n is 0, or k does not lie in 0..n: an empty set has no rate.
    """
    if not 0 <= k <= n or n == 0:
        raise ValueError(f"expected 0 <= k <= n and n > 0, got k = {k}, n = {n}")
    return _compute_rate(int(k), int(n))


@functools.lru_cache(maxsize=1 << 16)  # the classes of a run have few distinct counts
def _compute_rate(k: int, n: int) -> Rate:
    # The interval does not depend on p; at k / n the test itself costs nothing.
    interval = binomtest(k, n, k / n).proportion_ci(confidence_level=0.95, method="wilson")
    return Rate(k, n, k / n, float(interval.low), float(interval.high))


def robust_examples(records: pd.DataFrame) -> Outcomes:
    """Select robust examples: correct before, and correct after or with a violation.

    Args:
        records: Per-example records of one or several cells.

    Returns:
        Bool, indexed as the records.
    """
    return _are_robust(records, "adv_pred")


def robust_examples_8bit(records: pd.DataFrame) -> Outcomes:
    """Select robust examples as judged on the adversarial image rounded to 8 bits.

    Args:
        records: Per-example records of one or several cells.

    Returns:
        Bool, indexed as the records.
    """
    return _are_robust(records, "adv_pred_8bit")


def _are_robust(records: pd.DataFrame, prediction: str) -> Outcomes:
    unbroken = accepted_answers(records, prediction).to_numpy()
    spoilt = records["violation"].astype(str).to_numpy() != ""
    before = records["clean_correct"].to_numpy(dtype=bool)
    return pd.Series(before & (unbroken | spoilt), index=records.index)


def accepted_answers(records: pd.DataFrame, prediction: str = "adv_pred") -> Outcomes:
    """Select examples whose prediction is the label, or a rejection that counts as robust.

    Args:
        records: Per-example records of one or several cells.
        prediction: Column of the predictions.

    Returns:
        Bool, indexed as the records.
    """
    predicted = records[prediction].to_numpy()
    spared = records["rejected_is_robust"].to_numpy(dtype=bool)
    rejected = predicted == records["rejection"].to_numpy()
    right = predicted == records["label"].to_numpy()
    return pd.Series(right | (spared & rejected), index=records.index)


def rejected_examples(records: pd.DataFrame, prediction: str = "adv_pred") -> Outcomes:
    """Select examples whose image the model's detector rejects.

    Args:
        records: Per-example records of one or several cells.
        prediction: Column of the predictions: "adv_pred", or "clean_pred" for the clean image.

    Returns:
        Bool, indexed as the records; False of a model without a detector.
    """
    number = records["rejection"].to_numpy()
    return pd.Series(
        (records[prediction].to_numpy() == number) & (number >= 0), index=records.index
    )


def eligible_examples(records: pd.DataFrame) -> Outcomes:
    """Select examples that an attack could succeed on.

    Args:
        records: Per-example records of one or several cells.

    Returns:
        Bool, indexed as the records: correct before and, when targeted, of another class than the
        target.
    """
    before = records["clean_correct"].to_numpy(dtype=bool)
    other = records["label"].to_numpy() != records["target"].to_numpy()
    return pd.Series(before & other, index=records.index)


def fooled_examples(records: pd.DataFrame) -> Outcomes:
    """Select examples that the attack succeeded on, as verified.

    Args:
        records: Per-example records of one or several cells.

    Returns:
        Bool, indexed as the records.
    """
    return pd.Series(records["fooled"].to_numpy(dtype=bool), index=records.index)


def fooled_within(records: pd.DataFrame, budget: float) -> Outcomes:
    """Select examples that the attack succeeded on within a number of queries.

    Args:
        records: Per-example records of cells whose queries were counted.
        budget: Number of queries; infinite for those of the whole run.

    Returns:
        Bool, indexed as the records.
    """
    within = records["queries"].to_numpy(dtype=float) <= budget
    return fooled_examples(records) & within


def worst_case(outcomes: Sequence[Outcomes]) -> Outcomes:
    """Join outcomes of several attacks: an example is robust if it is under every attack.

    Args:
        outcomes: For each attack, bool indexed by example.

    Returns:
        Their conjunction.

    Raises:
        ValueError: There are none, or they are not of the same examples.
    """
    if not outcomes:
        raise ValueError("expected at least one attack, got none")
    if any(not outcome.index.equals(outcomes[0].index) for outcome in outcomes):
        raise ValueError("expected the same examples under every attack")
    joined = np.logical_and.reduce([outcome.to_numpy(dtype=bool) for outcome in outcomes])
    return pd.Series(joined.astype(bool), index=outcomes[0].index)


def mcnemar_test(first: Outcomes, second: Outcomes) -> McNemarTest:
    """Compare two outcomes of the same examples by the exact two-sided McNemar test.

    Args:
        first: Bool, indexed by example.
        second: Bool, indexed alike.

    Returns:
        How many examples each alone has, and the p-value.

    Raises:
        ValueError: They are not of the same examples.
    """
    if not first.index.equals(second.index):
        raise ValueError("expected the same examples on both sides")
    a, b = first.to_numpy(dtype=bool), second.to_numpy(dtype=bool)
    only_first, only_second = int((a & ~b).sum()), int((~a & b).sum())
    return McNemarTest(only_first, only_second, _two_sided_p(only_first, only_first + only_second))


def one_sided_mcnemar_test(before: Outcomes, after: Outcomes) -> PairedChange:
    """Test whether more is lost than gained by the exact one-sided McNemar test.

    Args:
        before: Bool, indexed by example.
        after: Bool, indexed alike.

    Returns:
        Ids of lost and of gained examples, and the p-value.

    Raises:
        ValueError: They are not of the same examples.
    """
    return one_sided_sign_test(before.astype(int), after.astype(int))


def one_sided_sign_test(before: Counts, after: Counts) -> PairedChange:
    """Test whether more examples fall than rise by the exact one-sided sign test.

    Each example is one toss of the coin, whatever its count: the test is exact however the
    outcomes that are counted for an example depend on each other. Of counts 0 and 1 it is the
    one-sided McNemar test.

    Args:
        before: Outcomes of each example, counted, such as the cells in which it is robust.
        after: As many, indexed alike.

    Returns:
        Ids of the examples whose count fell and rose, and the p-value.

    Raises:
        ValueError: They are not of the same examples.
    """
    if not before.index.equals(after.index):
        raise ValueError("expected the same examples on both sides")
    a, b = before.to_numpy(), after.to_numpy()
    lost, gained = (
        tuple(int(example) for example in before.index[changed]) for changed in (a > b, a < b)
    )
    return PairedChange(lost, gained, one_sided_p_value(len(lost), len(lost) + len(gained)))


@functools.cache
def one_sided_p_value(heads: int, tosses: int) -> float:
    """Compute the chance that a fair coin falls heads at least so often.

    Args:
        heads: Examples that were lost.
        tosses: Examples that changed.

    Returns:
        The p-value of the one-sided sign test; 1 if none changed.
    """
    return float(binomtest(heads, tosses, 0.5, "greater").pvalue) if tosses else 1.0


@functools.cache  # a run with many attacks has thousands of pairs, and most of them few differences
def _two_sided_p(heads: int, tosses: int) -> float:
    """Compute the chance that a fair coin falls at least as unevenly, to either side."""
    return float(binomtest(heads, tosses, 0.5).pvalue) if tosses else 1.0


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """Correct the p-values of a family of tests by Holm's method.

    Where all corrected values below 5 % are called a difference, the chance that any call is false
    is at most 5 %, however the tests depend on each other. The k-th smallest of m is multiplied by
    m - k + 1 and is no smaller than the one before it.
    Source: Holm 1979, https://www.jstor.org/stable/4615733

    Args:
        p_values: One for each test.

    Returns:
        Corrected values, at most 1, in the same order.
    """
    values = np.asarray(p_values, dtype=float)
    order = np.argsort(values, kind="stable")
    corrected = np.empty_like(values)
    steps = values[order] * np.arange(len(values), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in corrected]
