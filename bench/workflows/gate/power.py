"""Compute which loss can fail a check."""

import math
from collections.abc import Sequence

from bench.reporting.formats import numbers
from bench.workflows.gate.accuracy_pair import AccuracyPair, PooledPair


def find_smallest_detectable_loss(
    n: int, before: int, allowed: int, family: int, alpha: float
) -> int | None:
    """Find the smallest loss that fails a check if nothing is gained.

    Args:
        n: Examples.
        before: Examples that counted before.
        allowed: Largest loss within the threshold, in examples.
        family: Accuracies compared, by which p values are corrected.
        alpha: Significance level.

    Returns:
        Number of lost examples; None if even the loss of all would pass.

    >>> cases = [(200, 180, 2, 1, 0.01), (1000, 900, 10, 50, 0.01), (200, 5, 2, 1, 0.01)]
    >>> [find_smallest_detectable_loss(*case) for case in cases]
    [7, 13, None]
    """
    seen = math.ceil(math.log2(family / alpha))
    k = max(seen, allowed + 1)
    return k if k <= min(n, before) else None


def describe_power(pairs: Sequence[AccuracyPair | PooledPair], alpha: float) -> str:
    """Say which loss can fail a check.

    Args:
        pairs: All accuracies that are compared.
        alpha: Significance level.

    Returns:
        One or several sentences.
    """
    if not pairs:
        return "No accuracy was compared."
    whole = [pair for pair in pairs if isinstance(pair, PooledPair) or pair.worst is None]
    n, family = len(whole[0].before), len(pairs)
    needs = [
        find_smallest_detectable_loss(n, pair.n_affected, pair.allowed, family, alpha)
        for pair in whole
    ]
    of_class = [pair for pair in pairs if isinstance(pair, AccuracyPair) and pair.worst]
    of_classes = _describe_class_power(of_class, family, alpha)
    known = [need for need in needs if need is not None]
    shared = f"{numbers.format_plural(family, 'comparison')}, alpha = {alpha:g} for all together"
    if not known:
        nothing = f"No loss at all can turn this check red: {n} examples are too few ({shared})."
        return f"{nothing}{of_classes}"
    k = min(known)
    share = numbers.format_percent(k / n).removesuffix(" %")
    blind = len(needs) - len(known)
    more = f" Of the accuracies, {blind} cannot fall by enough to turn red." if blind else ""
    return (
        f"No loss of fewer than {k} of {n} examples ({share} pp) can turn this check red "
        f"({shared}).{more}{of_classes}"
    )


def _describe_class_power(pairs: list[AccuracyPair], family: int, alpha: float) -> str:
    """Say which loss of one class can fail the check."""
    needs: list[int | None] = []
    for pair in pairs:
        worst = pair.worst
        assert worst is not None
        needs += [
            find_smallest_detectable_loss(
                rate.n, rate.k, tolerance, family * worst.n_candidates, alpha
            )
            for rate, tolerance in worst.list_tolerances(pair.threshold)
        ]
    if not needs:
        return ""
    known = [need for need in needs if need is not None]
    if not known:
        return " No loss of a single class can: each has too few images or too few robust ones."
    return f" The loss of {min(known)} images of one class may."
