"""Compare clean and robust accuracies example by example, with one multiple-test correction."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bench.analysis.snapshot import ExampleClasses, Snapshot
from bench.evaluation import metrics
from bench.reporting.formats import numbers
from bench.suite.thresholds import Thresholds
from bench.suite.unions import ThreatUnion
from bench.workflows.gate.pairs import AccuracyPair, pair_accuracies
from bench.workflows.gate.verdicts import AccuracyChange, Outcome, Verdict, describe_p_value
from bench.workflows.gate.worst_class import judge_worst_class


class AccuracyVerdicts(NamedTuple):
    """A verdict on each accuracy, and the power of the tests."""

    verdicts: list[Verdict]
    power: str
    """The smallest loss that can fail the check, in a sentence."""


def judge_accuracies(
    before: Snapshot,
    now: Snapshot,
    limits: Thresholds,
    unions: Sequence[ThreatUnion] = (),
    classes: ExampleClasses | None = None,
) -> AccuracyVerdicts:
    """Compare clean accuracy, and the robust accuracy of cells, unions and worst classes.

    Args:
        before: Snapshot of the baseline.
        now: Snapshot of the run.
        limits: Thresholds and alpha.
        unions: Unions of the suite, beside that of all its threat models.
        classes: Classes of the run's examples; None if no cell is finished.

    Returns:
        Verdicts in this order, and the power of the tests.
    """
    items = pair_accuracies(before, now, limits, unions, classes)
    pairs = [each for each in items if isinstance(each, AccuracyPair)]
    judged = iter(_judge_pairs(pairs, limits.alpha))
    verdicts = [next(judged) if isinstance(each, AccuracyPair) else each for each in items]
    return AccuracyVerdicts(verdicts, _power(pairs, limits.alpha))


def _judge_pairs(pairs: list[AccuracyPair], alpha: float) -> Iterator[Verdict]:
    """Judge each pair, with p values corrected over all pairs (Holm)."""
    losses = [metrics.one_sided_mcnemar_test(pair.before, pair.after) for pair in pairs]
    gains = [metrics.one_sided_mcnemar_test(pair.after, pair.before) for pair in pairs]
    p_lost, p_gained = (
        metrics.holm_correction(
            [
                min(1.0, test.p_value * pair.n_candidates)
                for pair, test in zip(pairs, tests, strict=True)
            ]
        )
        for tests in (losses, gains)
    )
    for pair, loss, *p_values in zip(pairs, losses, p_lost, p_gained, strict=True):
        counts = int(pair.before.sum()), int(pair.after.sum()), len(pair.before)
        change = AccuracyChange(*counts, loss.lost, loss.gained, *p_values)
        if pair.worst is None:
            outcome, sentence = _judge_change(change, pair, alpha)
        else:
            outcome, sentence = judge_worst_class(change, pair.worst, pair.threshold, alpha)
        place = pair.gate, pair.model, pair.attack, pair.eps
        yield Verdict(*place, outcome, sentence, change)


def _judge_change(change: AccuracyChange, pair: AccuracyPair, alpha: float) -> tuple[Outcome, str]:
    lost, gained = len(change.lost), len(change.gained)
    fell = lost - gained
    if not lost and not gained:
        return "passed", f"{change.after} of {change.n}, the same examples as before"
    difference = numbers.format_points(-100 * fell / change.n)
    counts = f"{change.before} → {change.after} of {change.n} ({difference}): "
    counts += f"lost {lost}, gained {gained}"
    limit = pair.threshold.text.partition(":")[2]
    if fell > pair.allowed:
        if change.p_lost <= alpha:
            p_value = describe_p_value(change.p_lost)
            return "regressed", f"{counts}, beyond {limit} and beyond chance ({p_value})"
        p_value = describe_p_value(change.p_lost)
        return "passed", f"{counts}, beyond {limit} but no more than chance ({p_value})"
    if -fell > pair.allowed and change.p_gained <= alpha:
        return "improved", f"{counts}, beyond chance ({describe_p_value(change.p_gained)})"
    return "passed", f"{counts}, within {limit}" if fell > 0 else counts


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


def _power(pairs: list[AccuracyPair], alpha: float) -> str:
    if not pairs:
        return "No accuracy was compared."
    whole = [pair for pair in pairs if pair.worst is None]
    n, family = len(whole[0].before), len(pairs)
    needs = [
        find_smallest_detectable_loss(n, int(p.before.sum()), p.allowed, family, alpha)
        for p in whole
    ]
    of_classes = _describe_class_power([pair for pair in pairs if pair.worst], family, alpha)
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
