"""Compare robustness to several threat models together, from the outcomes of single cells.

A union is compared over the cells that both sides finished with the same settings, so that an
attack that was added to the suite is no regression. It needs a shared cell at the largest eps of
each of its threat models.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandas as pd

from bench.analysis import snapshot_matching, unions
from bench.analysis.snapshot import CellSnapshot, Snapshot, unpack_outcomes
from bench.evaluation import metrics
from bench.evaluation.metrics import Outcomes
from bench.suite.unions import ThreatUnion


class UnionComparison(NamedTuple):
    """A union of one model in the baseline and in the run."""

    model: str
    name: str
    """Label, threat models, goal if targeted, and the shared cells if they are not all."""
    outcomes: tuple[Outcomes, Outcomes] | None
    """Which examples are robust in the baseline and in the run; None if it cannot be compared."""
    reason: str
    """Why it cannot be compared; empty if it can."""


def pair_unions(
    before: Snapshot, now: Snapshot, chosen: Sequence[ThreatUnion]
) -> Iterator[UnionComparison]:
    """Pair the unions of every model of the run.

    Args:
        before: Snapshot of the baseline.
        now: Snapshot of the run.
        chosen: Unions of the suite, beside that of all its threat models.

    Yields:
        Each union that the run has attacks for.
    """
    cells = _tabulate_cells(before, now)
    if cells.empty:
        return
    for (model, goal), rows in cells.groupby(["model", "goal"], sort=False):
        for label, threats in unions.list_unions(rows, chosen):
            members = pd.concat([unions.select_cells(rows, threat) for threat in threats])
            shared = members[members["shared"]]
            name = f"{label} ({', '.join(f'{each.norm} {each.eps_text}' for each in threats)})"
            name += "" if goal == "untargeted" else f", {goal}"
            unshared = [
                f"{largest.norm} {largest.eps_text}"
                for largest in unions.find_threats(members)
                if not ((shared["norm"] == largest.norm) & (shared["eps"] == largest.eps)).any()
            ]
            if unshared:
                reason = f"no cell at {', '.join(unshared)} that both finished with these settings"
                yield UnionComparison(str(model), name, None, reason)
                continue
            if len(shared) < len(members):
                name += f", {len(shared)} of {len(members)} cells"
            earlier, later = (
                metrics.worst_case([unpack_outcomes(text, now.data.n) for text in shared[side]])
                for side in ("before", "after")
            )
            yield UnionComparison(str(model), name, (earlier, later), "")


def _tabulate_cells(before: Snapshot, now: Snapshot) -> pd.DataFrame:
    """Tabulate the cells of the run: threat model, and the outcomes on both sides if shared."""
    earlier = snapshot_matching.index_cells(before)
    tasks, were = snapshot_matching.index_attacks(now), snapshot_matching.index_attacks(before)
    rows = []
    for key, cell in snapshot_matching.index_cells(now).items():
        task, was = tasks[key[:2]], were.get(key[:2])
        shared = (
            was is not None
            and not snapshot_matching.find_setting_changes(was, task)
            and _is_finished(cell)
            and _is_finished(earlier.get(key))
        )
        rows.append(
            {
                "model": cell.model,
                "norm": str(task.settings.get("norm", "")),
                "goal": str(task.settings.get("goal", "untargeted")),
                "eps": cell.eps,
                "eps_text": cell.eps_text,
                "shared": shared,
                "before": earlier[key].robust if shared else "",
                "after": cell.robust,
            }
        )
    return pd.DataFrame(rows)


def _is_finished(cell: CellSnapshot | None) -> bool:
    return cell is not None and cell.status == "ok"
