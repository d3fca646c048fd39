"""Define what is tested: an accuracy that baseline and run both have, on the same examples."""

import math
from fractions import Fraction
from typing import NamedTuple

from bench.evaluation.metrics import Counts, Outcomes
from bench.suite.thresholds import Threshold
from bench.workflows.gate.worst_class import WorstClasses


class AccuracyPair(NamedTuple):
    """An accuracy that both sides have, with the outcomes of the same examples."""

    gate: str
    model: str
    attack: str
    eps: str
    before: Outcomes
    after: Outcomes
    threshold: Threshold
    worst: WorstClasses | None = None
    """Classes that the examples were selected by; None if they are all examples."""

    @property
    def allowed(self) -> int:
        """The largest net loss within the threshold, in examples."""
        return math.floor(self.exactly_allowed)

    @property
    def exactly_allowed(self) -> Fraction:
        """The threshold, in examples."""
        return self.threshold.allowed(int(self.before.sum()), len(self.before))

    @property
    def n_candidates(self) -> int:
        """Number of classes that the examples were selected from."""
        return 1 if self.worst is None else self.worst.n_candidates

    @property
    def n_affected(self) -> int:
        """Number of examples that can be lost."""
        return int(self.before.sum())


class PooledPair(NamedTuple):
    """The robust accuracy of a model over all its compared cells together."""

    gate: str
    model: str
    attack: str
    eps: str
    before: Counts
    """For each example, in how many of the cells it is robust in the baseline, (n,)."""
    after: Counts
    """As many in the run."""
    n_cells: int
    total_allowed: Fraction
    """Sum of the cells' thresholds, in examples: the largest net loss over all cells that passes,
    each example counted once in each cell."""

    @property
    def allowed(self) -> int:
        """The largest number of examples that can be lost from every cell within the threshold."""
        return math.floor(self.total_allowed / self.n_cells)

    @property
    def n_candidates(self) -> int:
        """Number of selections that the examples were made by; there is none."""
        return 1

    @property
    def n_affected(self) -> int:
        """Number of examples that can be lost."""
        return int((self.before > 0).sum())
