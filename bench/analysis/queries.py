"""Read results within fewer queries from one run of an attack that asks for scores or labels.

The records say at which query each example fell, so one run contains the robust accuracy at every
number of queries, and a search the median distance at each of its budgets:
  robust accuracy(q)   = (correct before, not fooled within q queries) / n; untargeted attacks only
  success rate(q)      = fooled within q queries / eligible
  queries of the fooled: median and mean over the examples fooled within q queries, n = `fooled`
If the attack declares that it is `anytime`, these are the figures of a run with q queries, example
by example; otherwise they are those of one moment of a longer run, which table and page say.
An image that was returned although the model was not asked about it counts one query more than were
made. A cell has a reason in place of figures where its queries are not known.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.analysis import min_norm
from bench.evaluation import metrics
from bench.storage.reader import StoredRecords
from bench.suite.plan import Cell

COLUMNS = (
    "model", "attack", "implementation", "norm", "eps", "eps_text", "goal", "target", "status",
    "reason", "budget", "anytime", "n", "clean_correct", "robust_correct", "robust_accuracy",
    "robust_low", "robust_high", "eligible", "fooled", "attack_success_rate", "success_low",
    "success_high", "median_queries", "median_queries_low", "median_queries_high", "mean_queries",
    "median_distance", "median_distance_low", "median_distance_high", "lower_quartile_distance",
    "upper_quartile_distance",
)  # fmt: skip
COUNTS = ("budget", "n", "clean_correct", "robust_correct", "eligible", "fooled")
NOT_COUNTED = (
    "its queries are not known: an attack with a loop of its own is counted if its entry has "
    "batch_size = 1"
)
NOT_RECORDED = (
    "its queries are not known: the records are of a version that did not count them, or of "
    'sweep = "nested"; set budgets, or run it again with --fresh'
)


class QueryCurve(NamedTuple):
    """When the examples of one cell fell."""

    cell: Cell
    status: str
    """"ok"; "unknown" if the queries are not; else the status of the cell."""
    reason: str
    records: pd.DataFrame
    """Records of the cell; empty unless the status is "ok"."""
    made: float = 0.0
    """Most queries that were made for one example."""

    @property
    def rivals(self) -> tuple[str, ...]:
        """What cells that are compared with each other have in common."""
        cell = self.cell
        return cell.model, cell.norm, cell.eps_text, cell.goal, cell.target

    @property
    def budgets(self) -> list[int]:
        """Numbers of queries of the rows of the table."""
        if self.cell.budgets:
            return list(self.cell.budgets)
        return [max(1, round(self.made))]


def collect_curves(
    plan: Sequence[Cell], table: pd.DataFrame, stored: StoredRecords
) -> list[QueryCurve]:
    """Collect the cells of attacks that search by scores or labels.

    Args:
        plan: The cells of the suite.
        table: That of `tables.cell_table`.
        stored: Records of the run.

    Returns:
        One curve per cell with eps > 0, in the order of the plan.
    """
    asking = [cell for cell in plan if cell.queries and cell.eps > 0]
    if not asking:
        return []
    status = table.drop_duplicates("cell").set_index("cell")[["status", "reason"]]
    places = stored.row_positions()
    curves = []
    for cell in asking:
        state, reason = (str(text) for text in status.loc[cell.identity])
        records = stored.frame.iloc[places[cell.identity] if state == "ok" else slice(0)]
        attacked = records[records["attacked"]]
        if state == "ok" and attacked["queries"].isna().any():
            state, records = "unknown", records.iloc[:0]
            # Records of an attack with a loop of its own have no step of the first success.
            own = (attacked["first_success_step"] >= 0).any() or cell.implementation == "bench"
            reason = NOT_RECORDED if own else NOT_COUNTED
        # The queries of one search are divided among its eps.
        cells = [each.identity for each in plan if _is_same_search(cell, each)] or [cell.identity]
        made = sum(
            float(stored.frame["forwards"].iloc[places[identity]].max())
            for identity in dict.fromkeys(cells)
            if state == "ok"
        )
        curves.append(QueryCurve(cell, state, reason, records, made))
    return curves


def _is_same_search(cell: Cell, other: Cell) -> bool:
    """Check whether two cells are of one search for all eps."""
    keys = ("model", "attack", "norm", "goal", "target", "budget")
    return cell.budget == "minimum" and all(
        getattr(cell, key) == getattr(other, key) for key in keys
    )


def query_table(curves: Sequence[QueryCurve]) -> pd.DataFrame:
    """Summarize the cells at each of their budgets.

    Args:
        curves: Those of `collect_curves`.

    Returns:
        One row per cell and budget, columns COLUMNS; a cell without figures has one row.
    """
    frame = pd.DataFrame([row for curve in curves for row in _rows(curve)], columns=[*COLUMNS])
    frame[[*COUNTS]] = frame[[*COUNTS]].astype("Int64")
    return frame


class AccuracySteps(NamedTuple):
    """Robust accuracy as a step function of the queries."""

    queries: npt.NDArray[Any]
    """Ascending from 0."""
    share: npt.NDArray[Any]
    """Share of examples that are correct and not fooled within as many queries."""
    low: npt.NDArray[Any]
    """Lower end of its 95 % Wilson interval."""
    high: npt.NDArray[Any]
    """Upper end."""


def accuracy_steps(records: pd.DataFrame) -> AccuracySteps:
    """Compute the robust accuracy as a function of the queries.

    Args:
        records: Records of one cell whose queries are known.

    Returns:
        The accuracy at each number of queries at which an example fell.
    """
    correct = records["clean_correct"].to_numpy(dtype=bool)
    fell = records["queries"].to_numpy(dtype=float)[metrics.fooled_examples(records).to_numpy()]
    at = np.unique(np.append(fell, 0.0))
    lost = np.searchsorted(np.sort(fell), at, side="right")
    rates = [metrics.rate(int(k), len(records)) for k in correct.sum() - lost]
    share, low, high = np.array([(rate.value, rate.low, rate.high) for rate in rates]).T
    return AccuracySteps(at, share, low, high)


def distances_within(records: pd.DataFrame, at: int) -> min_norm.Distances | None:
    """Select the least distances that a search found within one of its budgets.

    Args:
        records: Records of one cell.
        at: Index of the budget.

    Returns:
        Distances of the scored examples, as `min_norm.compute_distances`; None if not recorded.
    """
    attacked = records["attacked"].to_numpy(dtype=bool)
    lists = records["distance_within"].to_numpy()
    if any(values is None for values in lists[attacked]) or not attacked.any():
        return None
    found = np.full(len(records), np.nan)
    found[attacked] = [float(values[at]) for values in lists[attacked]]
    return min_norm.compute_distances(records.assign(distance=found))


def _rows(curve: QueryCurve) -> Iterator[dict[str, object]]:
    """Yield the rows of one cell."""
    cell = curve.cell
    about: dict[str, object] = {
        "model": cell.model,
        "attack": cell.attack,
        "implementation": cell.implementation,
        "norm": cell.norm,
        "eps": cell.eps,
        "eps_text": cell.eps_text,
        "goal": cell.goal,
        "target": cell.target,
        "status": curve.status,
        "reason": curve.reason,
        "anytime": cell.anytime,
    }
    if curve.status != "ok":
        yield about
        return
    for at, budget in enumerate(curve.budgets):
        yield {**about, "budget": budget, **_figures(curve, at, budget)}


def _figures(curve: QueryCurve, at: int, budget: int) -> dict[str, object]:
    """Compute the figures of one cell at one budget."""
    records = curve.records
    n, correct = len(records), int(records["clean_correct"].sum())
    fooled = metrics.fooled_within(records, budget).to_numpy()
    eligible, k = int(metrics.eligible_examples(records).sum()), int(fooled.sum())
    figures: dict[str, object] = {
        "n": n, "clean_correct": correct, "eligible": eligible, "fooled": k
    }  # fmt: skip
    if curve.cell.goal == "untargeted":
        robust = metrics.rate(correct - k, n)
        figures |= {
            "robust_correct": robust.k,
            "robust_accuracy": robust.value,
            "robust_low": robust.low,
            "robust_high": robust.high,
        }
    if eligible:
        success = metrics.rate(k, eligible)
        figures |= {
            "attack_success_rate": success.value,
            "success_low": success.low,
            "success_high": success.high,
        }
    if k:
        queries = records["queries"].to_numpy(dtype=float)[fooled]
        middle = min_norm.median_distance(queries)
        figures |= {
            "median_queries": middle.value,
            "median_queries_low": middle.low,
            "median_queries_high": middle.high,
            "mean_queries": float(queries.mean()),
        }
    distances = distances_within(records, at) if curve.cell.budget == "minimum" else None
    if distances is not None and len(distances):
        nearest = min_norm.median_distance(distances)
        figures |= {
            "median_distance": nearest.value,
            "median_distance_low": nearest.low,
            "median_distance_high": nearest.high,
            "lower_quartile_distance": min_norm.quantile_distance(distances, 0.25),
            "upper_quartile_distance": min_norm.quantile_distance(distances, 0.75),
        }
    return figures
