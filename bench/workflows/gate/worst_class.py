"""Compare the robust accuracy of the worst class, from the outcomes of single examples.

The worst class is the one with the lowest robust accuracy; which one it is may change from the
baseline to the run. If the figure falls, the class that is now the worst fell at least as far, and
if it rises, the class that was the worst rose at least as far: the paired test is made on the
examples of that class. Since the outcomes select the class, its p value is multiplied by the number
of classes it was selected from (Bonferroni), before Holm's correction over the whole check.

Two kinds of classes are left out. One with so few images that the loss of all of them could be
chance would hide the losses of the others as long as it is the lowest. One without a correct image
in the baseline cannot lose any; one that has none left in the run counts with 0.
"""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from bench.analysis.classes import name_class
from bench.analysis.snapshot import ExampleClasses
from bench.evaluation import metrics
from bench.evaluation.metrics import Outcomes, Rate
from bench.reporting.formats import numbers
from bench.suite.thresholds import Threshold
from bench.workflows.gate.proof import describe_allowance, describe_unproven
from bench.workflows.gate.verdicts import AccuracyChange, Outcome, describe_p_value


class ClassRates(NamedTuple):
    """Robust accuracy of one class in the baseline and in the run."""

    name: str
    before: Rate
    after: Rate


class WorstClasses(NamedTuple):
    """The worst class in the baseline and in the run."""

    rates: Mapping[int, ClassRates]
    """Class -> rates, of all classes that are compared."""
    before: int
    """The worst class of the baseline."""
    after: int
    """The worst class of the run."""
    outcomes: tuple[Outcomes, Outcomes]
    """Baseline and run on the examples of the judged class."""
    n_candidates: int
    """Classes with enough images, of which the worst was selected."""
    left_out: str
    """Which classes are too small, in a phrase; empty if none is."""

    @property
    def fell(self) -> Fraction:
        """By how much the robust accuracy of the worst class fell; below 0 if it rose."""
        return _share(self.rates[self.before].before) - _share(self.rates[self.after].after)

    @property
    def judged(self) -> int:
        """The class whose examples are tested."""
        return self.before if self.fell < 0 else self.after

    def allowed(self, threshold: Threshold) -> Fraction:
        """Return the largest fall of the figure that passes.

        Args:
            threshold: That of the verdict.

        Returns:
            A share.
        """
        return threshold.allowed(_share(self.rates[self.before].before), 1)

    def list_tolerances(self, threshold: Threshold) -> list[tuple[Rate, int]]:
        """List for each class how many of its examples it can lose without exceeding a threshold.

        Args:
            threshold: That of the verdict.

        Returns:
            Rate in the baseline, and number of examples.
        """
        floor = _share(self.rates[self.before].before) - self.allowed(threshold)
        return [
            (each.before, math.floor(each.before.n * (_share(each.before) - floor)))
            for each in self.rates.values()
        ]


def find_least_size(n_classes: int, alpha: float) -> int:
    """Find the least number of images with which a class can be judged.

    Args:
        n_classes: Classes that occur.
        alpha: Significance level of the check.

    Returns:
        The size at which the loss of every image is significant if nothing else is compared.

    >>> find_least_size(10, 0.01), find_least_size(1000, 0.01)
    (10, 17)
    """
    return math.ceil(math.log2(n_classes / alpha))


def compare_worst_classes(
    before: Outcomes,
    after: Outcomes,
    clean: Outcomes,
    classes: ExampleClasses,
    alpha: float,
) -> WorstClasses | str:
    """Find the worst class of the baseline and of the run.

    Args:
        before: Which examples are robust in the baseline, bool (n,).
        after: Which are in the run, bool (n,).
        clean: Which the baseline's model classifies correctly without attack, bool (n,).
        classes: Classes of the examples.
        alpha: Significance level of the check.

    Returns:
        Both classes; a reason if no class can be judged.
    """
    indices, sizes = np.unique(classes.labels, return_counts=True)
    least = find_least_size(len(indices), alpha)
    large = [int(index) for index in indices[sizes >= least]]
    if not large:
        return f"no class has at least {least} images"
    members = {index: classes.labels == index for index in large}
    rates = {
        index: ClassRates(
            name_class(index, classes.names),
            *(metrics.rate(int(side[own].sum()), int(own.sum())) for side in (before, after)),
        )
        for index, own in members.items()
        if clean[own].any()
    }
    if not rates:
        return f"no class of at least {least} images has one that the baseline classifies correctly"
    first = min(rates, key=lambda index: (_share(rates[index].before), -rates[index].before.n))
    last = min(rates, key=lambda index: (_share(rates[index].after), -rates[index].after.n))
    n_small = len(indices) - len(large)
    small = "1 class" if n_small == 1 else f"{n_small} classes"
    found = WorstClasses(
        rates=rates,
        before=first,
        after=last,
        outcomes=(before, after),
        n_candidates=len(large),
        left_out=f"{small} of fewer than {least} images left out" if n_small else "",
    )
    own = members[found.judged]
    return found._replace(outcomes=(before[own], after[own]))


def judge_worst_class(
    change: AccuracyChange,
    worst: WorstClasses,
    threshold: Threshold,
    n_tests: int,
    alpha: float,
) -> tuple[Outcome, str]:
    """Judge the change of the worst class's robust accuracy.

    Args:
        change: That of the judged class, with corrected p values.
        worst: Both classes.
        threshold: That of the verdict.
        n_tests: Comparisons of the check, each class that the worst was selected from counted.
        alpha: Significance level of the check.

    Returns:
        Outcome and sentence.
    """
    was, now = worst.rates[worst.before], worst.rates[worst.after]
    allowed, limit = worst.allowed(threshold), describe_allowance(threshold)
    rate = numbers.format_rate(now.after.k, now.after.n, now.after.low, now.after.high)
    other = "" if worst.before == worst.after else f"class {was.name}, "
    difference = numbers.format_points(-100 * float(worst.fell))
    text = f"class {now.name} is the worst, {now.after.k} of {now.after.n} robust, {rate}; "
    text += f"in the baseline {other}{was.before.k} of {was.before.n} ({difference}); "
    judged = worst.rates[worst.judged].name
    text += f"class {judged} lost {len(change.lost)}, gained {len(change.gained)}"
    left_out = f"; {worst.left_out}" if worst.left_out else ""
    if worst.fell > allowed:
        text += f", more than the {limit} allowed"
        p_value = describe_p_value(change.p_lost)
        if change.p_lost <= alpha:
            return "regressed", f"{text} and beyond chance ({p_value}){left_out}"
        unproven = describe_unproven(change, change.n, n_tests, alpha, "images of the class")
        return "lost, not proven", f"{text}, {unproven}{left_out}"
    if -worst.fell > allowed and change.p_gained <= alpha:
        p_value = describe_p_value(change.p_gained)
        return "improved", f"{text}, beyond chance ({p_value}){left_out}"
    return "passed", text + (f", within the {limit} allowed" if worst.fell > 0 else "") + left_out


def _share(rate: Rate) -> Fraction:
    return Fraction(rate.k, rate.n)
