"""A finished cell as the audit sees it, and when one says something against another.

All attacks on a model are compared on the same examples, and one is called better than another only
where the exact paired test says that it is no accident.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import pandas as pd

from bench.evaluation import metrics
from bench.evaluation.audit.symptoms import ObservedSymptom, Symptom
from bench.evaluation.metrics import Outcomes
from bench.suite.plan import Cell

SIGNIFICANCE_LEVEL = 0.001
"""A fair coin's chance below which one attack is better than another: eleven examples to none. A
suite compares hundreds of pairs, of which the usual 0.05 would call several by accident."""
MIN_EXAMPLES, MIN_SHARE = 5, 0.05
"""Lost successes are a sign from so many and this share on: whatever stops right behind the
boundary loses single ones to rounding."""


class AttackedCell(NamedTuple):
    """A finished cell above eps 0, with what it did to each example."""

    cell: Cell
    broken: Outcomes
    """Whether the attack succeeded, indexed by example; those not attacked are left out."""
    records: pd.DataFrame
    """The records of the same examples."""

    @property
    def place(self) -> tuple[Any, ...]:
        """What attacks on a model must share to be compared; eps is the last."""
        return self.cell.norm, self.cell.goal, self.cell.target, self.cell.eps

    @property
    def white(self) -> bool:
        return self.cell.threat_model == "white-box"

    @property
    def steps(self) -> int | None:
        """Gradient steps, as the attack says; None if it does not."""
        told = self.cell.traits.get("steps", "")
        return int(told) if told.isdecimal() else None

    @property
    def iterated(self) -> bool:
        return self.white and self.steps != 1

    @property
    def unasking(self) -> bool:
        """Whether it is noise: it asked the model nothing and learned from none."""
        passes = self.records["forwards"].sum() + self.records["backwards"].sum()
        return self.cell.threat_model == "black-box, decision-based" and passes == 0

    @property
    def black(self) -> bool:
        return not self.white and not self.unasking


AttackedCells = Sequence[AttackedCell]
STRONGER_THRESHOLD = f"exact paired test p < {SIGNIFICANCE_LEVEL:g}"
LOST_THRESHOLD = f"{MIN_EXAMPLES} examples and {MIN_SHARE:.0%} of the successes"


def group_cells(
    runs: Iterable[AttackedCell], key: Callable[[AttackedCell], Hashable]
) -> Iterable[AttackedCells]:
    found: dict[Hashable, list[AttackedCell]] = {}
    for run in runs:
        found.setdefault(key(run), []).append(run)
    return found.values()


def find_strongest(runs: AttackedCells) -> AttackedCell:
    return max(runs, key=lambda run: int(run.broken.sum()))


def are_enough(lost: Outcomes, of: Outcomes) -> bool:
    return bool(lost.sum() >= max(MIN_EXAMPLES, MIN_SHARE * of.sum()))


def is_stronger(first: AttackedCell, second: AttackedCell) -> bool:
    split = metrics.mcnemar_test(first.broken, second.broken)
    return split.only_first > split.only_second and split.p_value < SIGNIFICANCE_LEVEL


def report_if_weaker(
    kind: Symptom, run: AttackedCell, rival: AttackedCell
) -> list[ObservedSymptom]:
    """The sign against `run`, if `rival` breaks more beyond chance."""
    if not is_stronger(rival, run):
        return []
    return [report_comparison(kind, run, rival, rival.broken & ~run.broken, STRONGER_THRESHOLD)]


def report_comparison(
    kind: Symptom, run: AttackedCell, rival: AttackedCell, which: Outcomes, threshold: str
) -> ObservedSymptom:
    split = metrics.mcnemar_test(rival.broken, run.broken)
    names = [run.cell.attack, rival.cell.attack]
    if names[0] == names[1]:
        names = [f"{each.cell.attack} at eps {each.cell.eps_text}" for each in (run, rival)]
    told = (
        f"{names[1]} breaks {split.only_first} that {names[0]} does not, "
        f"{names[0]} {split.only_second} that {names[1]} does not; p = {split.p_value:.2g}"
    )
    return report_symptom(kind, run, which, told, threshold)


def report_symptom(
    kind: Symptom, run: AttackedCell, which: Outcomes, evidence: str, threshold: str
) -> ObservedSymptom:
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
