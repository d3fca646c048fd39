"""Summarize the queries that attacks on a source made of the judged model, from the records.

An attack with a budget of such queries stops at its first success, so the queries of a fooled
example are those until it fell:
  median = over the fooled examples
  maximum = over all attacked examples; at most the budget
"""

import math

import pandas as pd

from bench.analysis.min_norm import median_distance
from bench.suite.plan import Cell


def summarize_victim_queries(cell: Cell, records: pd.DataFrame) -> dict[str, float | int | None]:
    """Summarize the queries of the victim in one cell.

    Args:
        cell: The cell.
        records: Its records.

    Returns:
        The columns `bench.analysis.columns.VICTIM_QUERIES`; empty for a cell without a budget, and
        None for figures of no example. With fewer than six fooled examples there is no interval.
    """
    if not cell.victim_queries or cell.eps == 0:
        return {}
    made = records["victim_queries"].to_numpy(dtype=float)
    attacked = records["attacked"].to_numpy(dtype=bool)
    spent = made[records["fooled"].to_numpy(dtype=bool)]
    middle = median_distance(spent) if len(spent) else None
    bounded = middle is not None and math.isfinite(middle.high)
    return {
        "victim_query_budget": cell.victim_queries,
        "median_victim_queries": middle.value if middle else None,
        "median_victim_queries_low": middle.low if middle and bounded else None,
        "median_victim_queries_high": middle.high if middle and bounded else None,
        "max_victim_queries": int(made[attacked].max()) if attacked.any() else None,
    }
