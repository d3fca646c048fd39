"""Compare searches by scores or labels on the same examples, at equal numbers of queries.

Of each pair of attacks with the same model, norm, goal and target, and at each of their common
budgets:
  nearer_first  = number of examples on which the first attack found a smaller distance within the
                  budget than the second; nearer_second likewise; equal = the others
  p_value       = exact two-sided sign test of these two counts (equal examples are left out)
  p_corrected   = by Holm's procedure, for all pairs and budgets of the run
Distances are equal if they differ by less than ROUNDING; both are infinite where neither attack
found an adversarial example, and 0 where the model misclassifies the clean image.
Source: Conover 1999, Practical Nonparametric Statistics, section 3.4 (the sign test)
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from bench.analysis import min_norm
from bench.analysis.queries import QueryCurve, distances_within
from bench.evaluation import metrics

COLUMNS = (
    "model", "norm", "goal", "target", "budget", "first", "second", "n", "median_first",
    "median_second", "nearer_first", "nearer_second", "equal", "p_value", "p_corrected",
)  # fmt: skip
ROUNDING = 1e-5
"""Share of the larger distance: engine and observer round distances differently."""


def compare_searches(curves: Sequence[QueryCurve]) -> pd.DataFrame:
    """Compare every pair of searches at each budget that both have.

    Args:
        curves: Those of `queries.collect_curves`.

    Returns:
        One row per pair and budget, columns COLUMNS; empty if no two searches are comparable.
    """
    searches: dict[tuple[str, ...], dict[str, QueryCurve]] = {}
    for curve in curves:
        cell = curve.cell
        if curve.status == "ok" and cell.budget == "minimum" and cell.budgets:
            rivals = searches.setdefault((cell.model, cell.norm, cell.goal, cell.target), {})
            rivals.setdefault(cell.attack, curve)  # a search is the same at every eps
    rows = [
        row
        for rivals in searches.values()
        for first, second in itertools.combinations(rivals.values(), 2)
        for row in _compare(first, second)
    ]
    corrected = metrics.holm_correction([float(str(row["p_value"])) for row in rows])
    frame = pd.DataFrame(rows, columns=[*COLUMNS])
    return frame.assign(p_corrected=corrected)


def _compare(first: QueryCurve, second: QueryCurve) -> Iterator[dict[str, object]]:
    """Yield the rows of one pair."""
    for at, budget in enumerate(first.budgets):
        if budget not in second.budgets:
            continue
        a = distances_within(first.records, at)
        b = distances_within(second.records, second.budgets.index(budget))
        if a is None or b is None or not len(a):
            continue
        equal = np.isclose(a, b, rtol=ROUNDING, atol=0)  # also where both are infinite
        nearer = [pd.Series(each & ~equal).astype(bool) for each in (a < b, b < a)]
        test = metrics.mcnemar_test(*nearer)
        cell = first.cell
        yield {
            "model": cell.model,
            "norm": cell.norm,
            "goal": cell.goal,
            "target": cell.target,
            "budget": budget,
            "first": cell.attack,
            "second": second.cell.attack,
            "n": len(a),
            "median_first": min_norm.median_distance(a).value,
            "median_second": min_norm.median_distance(b).value,
            "nearer_first": test.only_first,
            "nearer_second": test.only_second,
            "equal": int(equal.sum()),
            "p_value": test.p_value,
        }
