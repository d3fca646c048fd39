"""How things are counted, declared once. Nothing else in bench defines a rate.

n = examples in the cell. An example the model gets wrong without attack is not attacked and is not
robust.
  clean accuracy      = correct before / n
  robust accuracy     = correct before and after / n
  attack success rate = fooled / eligible: (correct before, wrong after) / correct before; targeted
                        (correct before, label != target, prediction after = target) /
                        (correct before, label != target)
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
"""Two sides differ by more than chance if their p-value, corrected for all comparisons of the run
(`holm`), is at most this: one false call in twenty runs, not in twenty rows."""

Outcomes: TypeAlias = "pd.Series[bool]"
"""Yes or no for each example of a cell."""


class Rate(NamedTuple):
    """k of n, with its 95 % Wilson score interval (Wilson 1927)."""

    k: int
    n: int
    value: float
    low: float
    high: float


class McNemarTest(NamedTuple):
    """Two outcomes on the same examples: how many each alone has, and the exact test."""

    only_first: int
    only_second: int
    p_value: float
    """Two-sided exact McNemar test (McNemar 1947): a fair coin's chance of so uneven a split."""


class PairedChange(NamedTuple):
    """What was lost and what was gained between two outcomes of the same examples."""

    lost: tuple[int, ...]
    """Ids of the examples with the outcome before and without it after."""
    gained: tuple[int, ...]
    p_value: float
    """One-sided exact McNemar test: a fair coin's chance of at least so many losses among all that
    changed. Swapped, the same two outcomes are tested for a gain."""


def rate(k: int, n: int) -> Rate:
    """The rate k / n.

    Raises: ValueError if n is 0 or k does not lie in 0..n: an empty set has no rate.
    """
    if not 0 <= k <= n or n == 0:
        raise ValueError(f"expected 0 <= k <= n and n > 0, got k = {k}, n = {n}")
    interval = binomtest(int(k), int(n)).proportion_ci(confidence_level=0.95, method="wilson")
    return Rate(int(k), int(n), k / n, float(interval.low), float(interval.high))


def robust_examples(records: pd.DataFrame) -> Outcomes:
    """Which examples are robust: correct before, and correct after or the attack broke its
    promise."""
    return _stood(records, "adv_pred")


def robust_examples_8bit(records: pd.DataFrame) -> Outcomes:
    """As `robust`, judged on the adversarial image rounded to 8 bits."""
    return _stood(records, "adv_pred_8bit")


def _stood(records: pd.DataFrame, prediction: str) -> Outcomes:
    unbroken = records[prediction].to_numpy() == records["label"].to_numpy()
    spoilt = records["violation"].astype(str).to_numpy() != ""
    before = records["clean_correct"].to_numpy(dtype=bool)
    return pd.Series(before & (unbroken | spoilt), index=records.index)


def eligible_examples(records: pd.DataFrame) -> Outcomes:
    """Which examples an attack could have succeeded on: correct before and, when targeted, of
    another class than the target."""
    before = records["clean_correct"].to_numpy(dtype=bool)
    other = records["label"].to_numpy() != records["target"].to_numpy()
    return pd.Series(before & other, index=records.index)


def fooled_examples(records: pd.DataFrame) -> Outcomes:
    """Which examples the attack succeeded on, as the judge found when it asked the model again."""
    return pd.Series(records["fooled"].to_numpy(dtype=bool), index=records.index)


def worst_case(outcomes: Sequence[Outcomes]) -> Outcomes:
    """Robust under every attack: the outcomes, indexed by example, joined by "and".

    Raises: ValueError if there are none, or they are not of the same examples.
    """
    if not outcomes:
        raise ValueError("expected at least one attack, got none")
    if any(not outcome.index.equals(outcomes[0].index) for outcome in outcomes):
        raise ValueError("expected the same examples under every attack")
    joined = np.logical_and.reduce([outcome.to_numpy(dtype=bool) for outcome in outcomes])
    return pd.Series(joined.astype(bool), index=outcomes[0].index)


def mcnemar_test(first: Outcomes, second: Outcomes) -> McNemarTest:
    """Compare two outcomes of the same examples, by an exact test on those that differ.

    Raises: ValueError if they are not of the same examples.
    """
    if not first.index.equals(second.index):
        raise ValueError("expected the same examples on both sides")
    a, b = first.to_numpy(dtype=bool), second.to_numpy(dtype=bool)
    only_first, only_second = int((a & ~b).sum()), int((~a & b).sum())
    return McNemarTest(only_first, only_second, _fair_coin(only_first, only_first + only_second))


def one_sided_mcnemar_test(before: Outcomes, after: Outcomes) -> PairedChange:
    """What is lost from `before` to `after`, by an exact one-sided test on what changed.

    Raises: ValueError if they are not of the same examples.
    """
    if not before.index.equals(after.index):
        raise ValueError("expected the same examples on both sides")
    a, b = before.to_numpy(dtype=bool), after.to_numpy(dtype=bool)
    lost, gained = (
        tuple(int(example) for example in before.index[changed]) for changed in (a & ~b, ~a & b)
    )
    return PairedChange(lost, gained, _at_least(len(lost), len(lost) + len(gained)))


@functools.cache
def _at_least(heads: int, tosses: int) -> float:
    """The chance that a fair coin falls heads at least so often."""
    return float(binomtest(heads, tosses, 0.5, "greater").pvalue) if tosses else 1.0


@functools.cache  # a run with many attacks has thousands of pairs, and most of them few differences
def _fair_coin(heads: int, tosses: int) -> float:
    """The chance that a fair coin falls at least as unevenly, to either side."""
    return float(binomtest(heads, tosses, 0.5).pvalue) if tosses else 1.0


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """The p-values of one family, each corrected for the others: where all that fall below 5 % are
    called a difference, the chance that any call is false is at most 5 %.

    The k-th least of m is multiplied by m - k + 1 and is no less than the one before it; nothing
    is assumed of how the tests depend on each other.
    Source: Holm 1979, https://www.jstor.org/stable/4615733
    """
    values = np.asarray(p_values, dtype=float)
    order = np.argsort(values, kind="stable")
    corrected = np.empty_like(values)
    steps = values[order] * np.arange(len(values), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in corrected]
