"""Compare clean and robust accuracies example by example, with one multiple-test correction."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bench.analysis.snapshot import ExampleClasses, Snapshot
from bench.evaluation import metrics
from bench.reporting.formats import numbers
from bench.suite.thresholds import Thresholds
from bench.suite.unions import ThreatUnion
from bench.workflows.gate.accuracy_pair import AccuracyPair, PooledPair
from bench.workflows.gate.pairs import pair_accuracies
from bench.workflows.gate.power import describe_power
from bench.workflows.gate.proof import describe_allowance, describe_unproven
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
    """Compare clean accuracy, and the robust accuracy of cells, their joints and worst classes.

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
    pairs = [each for each in items if not isinstance(each, Verdict)]
    judged = iter(_judge_pairs(pairs, limits.alpha))
    verdicts = [each if isinstance(each, Verdict) else next(judged) for each in items]
    return AccuracyVerdicts(verdicts, describe_power(pairs, limits.alpha))


def _judge_pairs(pairs: Sequence[AccuracyPair | PooledPair], alpha: float) -> Iterator[Verdict]:
    """Judge each pair, with p values corrected over all pairs (Holm)."""
    sides = [(pair.before.astype(int), pair.after.astype(int)) for pair in pairs]
    losses = [metrics.one_sided_sign_test(was, now) for was, now in sides]
    gains = [metrics.one_sided_sign_test(now, was) for was, now in sides]
    p_lost, p_gained = (
        metrics.holm_correction(
            [
                min(1.0, test.p_value * pair.n_candidates)
                for pair, test in zip(pairs, tests, strict=True)
            ]
        )
        for tests in (losses, gains)
    )
    for pair, (was, now), loss, *p_values in zip(
        pairs, sides, losses, p_lost, p_gained, strict=True
    ):
        n = len(was) * (pair.n_cells if isinstance(pair, PooledPair) else 1)
        counts = int(was.sum()), int(now.sum()), n
        change = AccuracyChange(*counts, loss.lost, loss.gained, *p_values)
        outcome, sentence = _judge_change(change, pair, len(pairs) * pair.n_candidates, alpha)
        yield Verdict(pair.gate, pair.model, pair.attack, pair.eps, outcome, sentence, change)


def _judge_change(
    change: AccuracyChange, pair: AccuracyPair | PooledPair, n_tests: int, alpha: float
) -> tuple[Outcome, str]:
    if isinstance(pair, PooledPair):
        return _judge_pooled(change, pair, n_tests, alpha)
    if pair.worst is not None:
        return judge_worst_class(change, pair.worst, pair.threshold, n_tests, alpha)
    lost, gained = len(change.lost), len(change.gained)
    fell = lost - gained
    if not lost and not gained:
        return "passed", f"{change.after} of {change.n}, the same examples as before"
    difference = numbers.format_points(-100 * fell / change.n)
    counts = f"{change.before} → {change.after} of {change.n} ({difference}): "
    counts += f"lost {lost}, gained {gained}"
    limit = describe_allowance(pair.threshold)
    if fell > pair.allowed:
        return _judge_loss(change, f"{counts}, more than the {limit} allowed", n_tests, alpha)
    if -fell > pair.allowed and change.p_gained <= alpha:
        return "improved", f"{counts}, beyond chance ({describe_p_value(change.p_gained)})"
    return "passed", f"{counts}, within the {limit} allowed" if fell > 0 else counts


def _judge_pooled(
    change: AccuracyChange, pair: PooledPair, n_tests: int, alpha: float
) -> tuple[Outcome, str]:
    """Judge the mean over the cells; `change` counts outcomes, one per example and cell."""
    n, fell = len(pair.before), change.before - change.after
    if not change.lost and not change.gained:
        return "passed", "every example is robust in as many cells as before"
    shares = [numbers.format_percent(count / change.n) for count in (change.before, change.after)]
    difference = numbers.format_points(-100 * fell / change.n)
    text = f"mean {' → '.join(shares)} ({difference}): of {n} examples {len(change.lost)} are "
    text += f"robust in fewer cells, {len(change.gained)} in more"
    limit = f"{float(100 * pair.total_allowed / change.n):.3g} pp"
    if fell > pair.total_allowed:
        return _judge_loss(change, f"{text}, more than the {limit} allowed", n_tests, alpha, n)
    if -fell > pair.total_allowed and change.p_gained <= alpha:
        return "improved", f"{text}, beyond chance ({describe_p_value(change.p_gained)})"
    return "passed", f"{text}, within the {limit} allowed" if fell > 0 else text


def _judge_loss(
    change: AccuracyChange, sentence: str, n_tests: int, alpha: float, n: int | None = None
) -> tuple[Outcome, str]:
    """Judge a loss that exceeds its threshold; n examples, `change.n` unless they are fewer."""
    if change.p_lost <= alpha:
        return "regressed", f"{sentence} and beyond chance ({describe_p_value(change.p_lost)})"
    unproven = describe_unproven(change, n or change.n, n_tests, alpha)
    return "lost, not proven", f"{sentence}, {unproven}"
