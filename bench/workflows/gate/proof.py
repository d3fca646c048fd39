"""Say what it would take to prove a loss that exceeds its threshold and may be chance."""

import math

from bench.evaluation import metrics
from bench.suite.thresholds import Threshold
from bench.workflows.gate.verdicts import AccuracyChange, describe_p_value


def find_proving_size(lost: int, gained: int, n: int, n_tests: int, alpha: float) -> int | None:
    """Find how many examples would prove a loss, if they were lost and gained at the same rates.

    Args:
        lost: Examples lost, of n.
        gained: Examples gained, of n.
        n: Examples compared.
        n_tests: Comparisons of the check, by which the p value is multiplied.
        alpha: Significance level of the check.

    Returns:
        Number of examples, rounded up to two digits; None if no number would, because no more
        examples are lost than gained.

    >>> find_proving_size(4, 0, 100, 8, 0.01), find_proving_size(60, 40, 1000, 8, 0.01)
    (240, 2400)
    """
    if lost <= gained:
        return None

    def is_proven(size: int) -> bool:
        heads, tails = (round(count * size / n) for count in (lost, gained))
        return metrics.one_sided_p_value(heads, heads + tails) * n_tests <= alpha

    enough = n
    while not is_proven(enough):
        enough *= 2
    short = enough // 2
    while enough - short > 1:
        middle = (short + enough) // 2
        short, enough = (short, middle) if is_proven(middle) else (middle, enough)
    unit: int = 10 ** max(len(str(enough)) - 2, 0)
    return math.ceil(enough / unit) * unit


def describe_allowance(threshold: Threshold) -> str:
    """Say what a threshold allows.

    Args:
        threshold: Of a rate or a throughput.

    Returns:
        The amount with its unit, such as "1 pp".
    """
    amount = threshold.text.partition(":")[2].lstrip("+-").removesuffix(threshold.unit)
    return f"{amount} {threshold.unit}".rstrip()


def describe_unproven(
    change: AccuracyChange, n_examples: int, n_tests: int, alpha: float, noun: str = "examples"
) -> str:
    """Say that a loss is not proven, and how many examples would prove it.

    Args:
        change: The loss.
        n_examples: Examples compared.
        n_tests: Comparisons of the check, by which the p value is multiplied.
        alpha: Significance level of the check.
        noun: What the examples are called.

    Returns:
        A phrase.
    """
    text = f"but not proven ({describe_p_value(change.p_lost)}"
    size = find_proving_size(len(change.lost), len(change.gained), n_examples, n_tests, alpha)
    if size is None:
        return f"{text}; no more {noun} fell than rose)"
    return f"{text}; at these rates about {size} {noun} would prove it)"
