"""Join the compared cells of a model: the worst case over its attacks, and all cells together.

A model that lost a little under every attack may lose too little under each to be proven. The worst
case at an eps collects what several attacks lose; the pooled pair counts for each example the cells
that it lost and gained, so that losses of different examples in different cells add up.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pandas as pd

from bench.analysis import snapshot_matching
from bench.analysis.snapshot import CellSnapshot, Snapshot
from bench.evaluation import metrics
from bench.evaluation.metrics import Counts, Outcomes
from bench.suite.labels import WORST_CASE
from bench.workflows.gate.accuracy_pair import AccuracyPair, PooledPair


class JointCells(NamedTuple):
    """The cells of a model's untargeted attacks in one norm at one eps."""

    model: str
    norm: str
    eps: float
    pairs: list[AccuracyPair]
    """Those that are compared."""
    n_cells: int
    """All of the run."""

    def join(self) -> AccuracyPair:
        """Join the cells to the worst case: an example is robust if it is in each of them.

        Returns:
            The worst case, with the most lenient threshold of the cells: what one of them may
            lose, their worst case may lose.
        """
        return max(self.pairs, key=lambda pair: pair.exactly_allowed)._replace(
            attack=f"{WORST_CASE} ({self.norm}, {_count_attacks(len(self.pairs), self.n_cells)})",
            before=metrics.worst_case([pair.before for pair in self.pairs]),
            after=metrics.worst_case([pair.after for pair in self.pairs]),
        )


def select_untargeted(now: Snapshot) -> list[CellSnapshot]:
    """Select the cells of untargeted attacks.

    Args:
        now: Snapshot of the run.

    Returns:
        Cells in their order.
    """
    tasks = snapshot_matching.index_attacks(now)
    return [
        cell
        for cell in now.cells
        if tasks[cell.model, cell.attack].settings.get("goal", "untargeted") == "untargeted"
    ]


def group_by_ball(now: Snapshot, compared: Sequence[AccuracyPair]) -> list[JointCells]:
    """Group the untargeted cells of a run by model, norm and eps.

    Args:
        now: Snapshot of the run.
        compared: The cells that are compared.

    Returns:
        Each group with at least two compared cells; a single one is its own worst case.
    """
    tasks = snapshot_matching.index_attacks(now)
    by_place = {(pair.model, pair.attack, pair.eps): pair for pair in compared}
    balls: dict[tuple[str, str, float], list[AccuracyPair | None]] = {}
    for cell in select_untargeted(now):
        norm = str(tasks[cell.model, cell.attack].settings.get("norm", ""))
        pair = by_place.get((cell.model, cell.attack, cell.eps_text))
        balls.setdefault((cell.model, norm, cell.eps), []).append(pair)
    joint = [
        JointCells(*place, [pair for pair in found if pair is not None], len(found))
        for place, found in balls.items()
    ]
    return [each for each in joint if len(each.pairs) > 1]


def pool_cells(now: Snapshot, compared: Sequence[AccuracyPair]) -> Iterator[PooledPair]:
    """Pool the compared cells of each model.

    Args:
        now: Snapshot of the run.
        compared: The cells that are compared.

    Yields:
        A pair for each model with at least two compared cells.
    """
    for model in dict.fromkeys(pair.model for pair in compared):
        pairs = [pair for pair in compared if pair.model == model]
        if len(pairs) < 2:
            continue
        every = sum(cell.model == model for cell in now.cells)
        yield PooledPair(
            gate=pairs[0].gate,
            model=model,
            attack=f"all {every} cells"
            if len(pairs) == every
            else f"{len(pairs)} of {every} cells",
            eps="",
            before=_count_robust([pair.before for pair in pairs]),
            after=_count_robust([pair.after for pair in pairs]),
            n_cells=len(pairs),
            total_allowed=sum((pair.exactly_allowed for pair in pairs), start=Fraction(0)),
        )


def _count_robust(cells: Sequence[Outcomes]) -> Counts:
    """Count for each example the cells in which it is robust."""
    counts = np.sum([cell.to_numpy(dtype=np.int64) for cell in cells], axis=0)
    return pd.Series(counts, index=cells[0].index)


def _count_attacks(compared: int, every: int) -> str:
    return f"{compared} attacks" if compared == every else f"{compared} of {every} attacks"
