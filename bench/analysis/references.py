"""Compare measured figures with figures published elsewhere, eps by eps.

A published figure is measured on another model and often with another implementation: a value
outside our interval shows a difference of the two together, not an error of either.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bench.evaluation import metrics
from bench.suite.references import ReferenceFigure

COLUMNS = (
    "model", "attack", "norm", "eps", "eps_text", "goal", "figure", "status", "reason", "k", "n",
    "measured", "low", "high", "published", "difference_points", "inside", "source", "note",
)  # fmt: skip


def compare_with_references(
    table: pd.DataFrame, published: Sequence[ReferenceFigure]
) -> pd.DataFrame:
    """Compare the cells of a run with published figures.

    Args:
        table: That of `tables.cell_table`.
        published: Figures that the suite names; their cells are in the table.

    Returns:
        One row per published value, columns COLUMNS. `difference_points` is measured - published
        in percentage points; `inside` says whether the published value lies in the 95 % interval
        of the measured one. k, n, low, high and inside are missing if the figure is not a rate of
        counts; a cell that is not ok has its status and reason, and no measured value.
    """
    cells = {(row["model"], row["attack"], row["eps"]): row for row in table.to_dict("records")}
    rows = [
        _row(entry, value, cells[entry.model, entry.attack, eps])
        for entry in published
        for eps, value in zip(entry.eps, entry.values, strict=True)
    ]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.astype({"k": "Int64", "n": "Int64", "inside": "boolean"})


def _row(entry: ReferenceFigure, value: float, cell: Mapping[Any, Any]) -> dict[str, object]:
    measured = _measure(entry.figure, cell) if cell["status"] == "ok" else {}
    found = measured.get("measured")
    inside = measured["low"] <= value <= measured["high"] if "low" in measured else None
    return {
        **{key: cell[key] for key in ("model", "attack", "norm", "eps", "eps_text", "goal")},
        "figure": entry.figure,
        "status": cell["status"],
        "reason": cell["reason"],
        **measured,
        "published": value,
        "difference_points": None if found is None else 100 * (found - value),
        "inside": inside,
        "source": entry.source,
        "note": entry.note,
    }


def _measure(figure: str, cell: Mapping[Any, Any]) -> dict[str, Any]:
    """Compute a figure of a finished cell, with counts and interval if it is a rate."""
    if figure == "mean_confidence_fooled":
        fooled = cell["mean_confidence_fooled"]
        return {} if pd.isna(fooled) else {"measured": fooled}
    k, n = {
        "robust_accuracy": (cell["robust_correct"], cell["n"]),
        "clean_accuracy": (cell["clean_correct"], cell["n"]),
        "error_rate": (cell["n"] - cell["robust_correct"], cell["n"]),
        "attack_success_rate": (cell["fooled"], cell["eligible"]),
    }[figure]
    if n == 0:  # nothing could be attacked, so there is no success rate
        return {}
    rate = metrics.rate(int(k), int(n))
    return {"k": rate.k, "n": rate.n, "measured": rate.value, "low": rate.low, "high": rate.high}
