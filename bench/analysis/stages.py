"""Compute what each part of an ensemble gained: the robust accuracy after each of its stages.

A part attacks what the parts before it left, and a record names the part that broke its example, so
that one run has the robust accuracy after every stage: after the last it is that of the cell.
Untargeted cells alone: a targeted success and a robust example are not each other's opposite.
"""

from collections.abc import Iterator, Sequence

import pandas as pd

from bench.evaluation import metrics
from bench.storage.reader import StoredRecords
from bench.suite.plan import Cell

COLUMNS = (
    "model", "attack", "norm", "eps", "eps_text", "stage", "stages", "part", "n", "broken",
    "robust_correct", "robust_accuracy", "robust_low", "robust_high",
)  # fmt: skip


def stage_table(plan: Sequence[Cell], table: pd.DataFrame, stored: StoredRecords) -> pd.DataFrame:
    """Count what each part of each ensemble broke and what was robust after it.

    Args:
        plan: The cells of the suite.
        table: That of `tables.cell_table`.
        stored: Records of the run.

    Returns:
        One row per finished untargeted cell of an ensemble and part, in order, columns COLUMNS.
        `broken` counts the examples that the part broke, `robust_correct` those that are robust
        after it, of `n`.
    """
    ensembles = [
        cell
        for cell in plan
        if cell.traits.get("parts") and cell.goal == "untargeted" and cell.eps > 0
    ]
    if not ensembles:
        return pd.DataFrame(columns=[*COLUMNS])
    done = set(table.loc[table["status"] == "ok", "cell"])
    positions = stored.row_positions()
    rows = [
        row
        for cell in ensembles
        if cell.identity in done
        for row in _list_stages(cell, stored.frame.iloc[positions[cell.identity]])
    ]
    return pd.DataFrame(rows, columns=[*COLUMNS])


def _list_stages(cell: Cell, records: pd.DataFrame) -> Iterator[dict[str, object]]:
    """Yield the stages of one cell."""
    parts = cell.traits["parts"].split(", ")
    broken = [int((records["fooled"] & (records["part"] == part)).sum()) for part in parts]
    robust = int(metrics.robust_examples(records).sum()) + sum(broken)
    for stage, (part, count) in enumerate(zip(parts, broken, strict=True), start=1):
        robust -= count
        rate = metrics.rate(robust, len(records))
        yield {
            "model": cell.model,
            "attack": cell.attack,
            "norm": cell.norm,
            "eps": cell.eps,
            "eps_text": cell.eps_text,
            "stage": stage,
            "stages": len(parts),
            "part": part,
            "n": rate.n,
            "broken": count,
            "robust_correct": rate.k,
            "robust_accuracy": rate.value,
            "robust_low": rate.low,
            "robust_high": rate.high,
        }
