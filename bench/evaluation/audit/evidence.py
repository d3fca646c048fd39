"""Arrange finished cells for the audit and compare attacks with each other.

All attacks on a model are compared on the same examples, and one counts as stronger than another
only where the exact paired test rejects chance.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import pandas as pd

from bench.evaluation import metrics
from bench.evaluation.audit.symptoms import ObservedSymptom, Symptom
from bench.evaluation.metrics import Outcomes
from bench.suite.plan import Cell

SIGNIFICANCE_LEVEL = 0.001
"""p-value below which one attack is stronger than another: eleven examples to none. A suite
compares hundreds of pairs, of which the usual 0.05 would reject several by chance."""
MIN_EXAMPLES, MIN_SHARE = 5, 0.05
"""Lost successes are a symptom from so many and this share on: attacks that stop right behind the
boundary lose single ones to rounding."""


class AttackedCell(NamedTuple):
    """A finished cell above eps 0 with its records."""

    cell: Cell
    broken: Outcomes
    """Whether the attack succeeded, indexed by example; those not attacked are left out, but for
    certified ones, on which none can succeed."""
    records: pd.DataFrame
    """The records of the same examples."""

    @property
    def place(self) -> tuple[Any, ...]:
        """What attacks on a model must share to be compared: norm, goal, target and eps."""
        return self.cell.norm, self.cell.goal, self.cell.target, self.cell.eps

    @property
    def certified(self) -> Outcomes:
        """Which examples a certificate proves robust, so that they were not attacked."""
        return self.records["certified"].astype(bool)

    @property
    def left(self) -> Outcomes:
        """Which examples were attacked in vain."""
        return ~self.broken & ~self.certified

    @property
    def white(self) -> bool:
        """Whether the attack has white-box access."""
        return self.cell.threat_model == "white-box"

    @property
    def steps(self) -> int | None:
        """Gradient steps, as the attack declares; None if it does not."""
        steps = self.cell.traits.get("steps", "")
        return int(steps) if steps.isdecimal() else None

    @property
    def iterated(self) -> bool:
        """Whether it is a white-box attack of several steps."""
        return self.white and self.steps != 1

    @property
    def is_noise(self) -> bool:
        """Whether it is noise: it never queried the model."""
        passes = self.records["forwards"].sum() + self.records["backwards"].sum()
        return self.cell.threat_model == "black-box, decision-based" and passes == 0

    @property
    def black(self) -> bool:
        """Whether it queries or transfers without white-box access."""
        return not self.white and not self.is_noise


AttackedCells = Sequence[AttackedCell]
STRONGER_THRESHOLD = f"exact paired test p < {SIGNIFICANCE_LEVEL:g}"
LOST_THRESHOLD = f"{MIN_EXAMPLES} examples and {MIN_SHARE:.0%} of the successes"


def group_cells(
    runs: Iterable[AttackedCell], key: Callable[[AttackedCell], Hashable]
) -> Iterable[AttackedCells]:
    """Group cells by a key.

    Args:
        runs: Finished cells.
        key: Computes what the cells of a group share.

    Returns:
        The groups, in order of their first cell.
    """
    found: dict[Hashable, list[AttackedCell]] = {}
    for run in runs:
        found.setdefault(key(run), []).append(run)
    return found.values()


def find_strongest(runs: AttackedCells) -> AttackedCell:
    """Find the cell that broke most examples.

    Args:
        runs: Cells of one model, at least one.

    Returns:
        The cell, the first on a tie.
    """
    return max(runs, key=lambda run: int(run.broken.sum()))


def are_enough(lost: Outcomes, of: Outcomes) -> bool:
    """Check whether affected examples are too many for chance.

    Args:
        lost: The affected examples.
        of: Those that could be affected.

    Returns:
        Whether they are MIN_EXAMPLES and MIN_SHARE at least.
    """
    return bool(lost.sum() >= max(MIN_EXAMPLES, MIN_SHARE * of.sum()))


def is_stronger(first: AttackedCell, second: AttackedCell) -> bool:
    """Check whether one attack breaks more examples than another beyond chance.

    Args:
        first: A cell.
        second: A cell on the same examples.

    Returns:
        Whether the exact paired test finds `first` stronger.
    """
    split = metrics.mcnemar_test(first.broken, second.broken)
    return split.only_first > split.only_second and split.p_value < SIGNIFICANCE_LEVEL


def report_if_weaker(
    kind: Symptom, run: AttackedCell, rival: AttackedCell
) -> list[ObservedSymptom]:
    """Report a symptom against an attack that a rival beats beyond chance.

    Args:
        kind: The symptom.
        run: The cell that should not be beaten.
        rival: A cell on the same examples.

    Returns:
        The symptom, or nothing if the rival is not stronger.
    """
    if not is_stronger(rival, run):
        return []
    return [report_comparison(kind, run, rival, rival.broken & ~run.broken, STRONGER_THRESHOLD)]


def report_comparison(
    kind: Symptom, run: AttackedCell, rival: AttackedCell, which: Outcomes, threshold: str
) -> ObservedSymptom:
    """Report a symptom with how two attacks compare.

    Args:
        kind: The symptom.
        run: The cell that it is reported against.
        rival: The cell that it is compared with.
        which: The examples that show it.
        threshold: The condition that made it a symptom.

    Returns:
        The symptom, with counts and p-value of the exact paired test.
    """
    split = metrics.mcnemar_test(rival.broken, run.broken)
    names = [run.cell.attack, rival.cell.attack]
    if names[0] == names[1]:
        names = [f"{each.cell.attack} at eps {each.cell.eps_text}" for each in (run, rival)]
    evidence = (
        f"{names[1]} breaks {split.only_first} that {names[0]} does not, "
        f"{names[0]} {split.only_second} that {names[1]} does not; p = {split.p_value:.2g}"
    )
    return report_symptom(kind, run, which, evidence, threshold)


def report_symptom(
    kind: Symptom, run: AttackedCell, which: Outcomes, evidence: str, threshold: str
) -> ObservedSymptom:
    """Report a symptom against an attack.

    Args:
        kind: The symptom.
        run: The cell that it is reported against.
        which: The examples that show it.
        evidence: What was observed, in one sentence.
        threshold: The condition that made it a symptom.

    Returns:
        The symptom.
    """
    return ObservedSymptom(
        name=kind.name,
        model=run.cell.model,
        attack=run.cell.attack,
        norm=run.cell.norm,
        eps=run.cell.eps,
        count=int(which.sum()),
        n=len(which),
        evidence=evidence,
        examples=tuple(int(example) for example in which.index[which.to_numpy(dtype=bool)]),
        threshold=threshold,
    )
