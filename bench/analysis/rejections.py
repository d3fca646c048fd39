"""Count what the detectors of models rejected: clean images, and adversarial ones of each cell.

Every count is derived from the per-example records by the definitions of `metrics`.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from bench.evaluation import metrics
from bench.storage.reader import StoredRecords

COLUMNS = (
    "model", "dataset", "attack", "norm", "goal", "eps", "eps_text", "counted_as", "n",
    "clean_rejected", "clean_rejection_rate", "clean_rejection_low", "clean_rejection_high",
    "clean_correct", "answered", "rejected", "wrong", "robust_correct", "robust_accuracy",
    "robust_low", "robust_high",
)  # fmt: skip


def rejection_table(
    table: pd.DataFrame, stored: StoredRecords, models: Mapping[str, Mapping[str, Any]]
) -> pd.DataFrame:
    """Count rejections in every finished cell of a model with a detector.

    Args:
        table: That of `tables.cell_table`.
        stored: Records of the run.
        models: Label of a model -> its entry in the manifest.

    Returns:
        One row per cell, columns COLUMNS. `counted_as` says how a rejected adversarial image
        counts. Of the clean_correct examples, `answered` are accepted and classified correctly
        under attack, `rejected` are rejected and `wrong` are accepted and misclassified.
    """
    with_detector = [label for label, entry in models.items() if entry.get("detector")]
    done = table[(table["status"] == "ok") & table["model"].isin(with_detector)]
    positions = stored.row_positions() if len(done) else {}
    rows = []
    for row in done.to_dict("records"):
        records = stored.frame.iloc[positions[row["cell"]]]
        about = {name: row[name] for name in COLUMNS if name in row}
        counted_as = models[row["model"]]["detector"]["rejected"]
        rows.append({**about, "counted_as": counted_as, **_count_rejections(records)})
    return pd.DataFrame(rows, columns=[*COLUMNS])


def _count_rejections(records: pd.DataFrame) -> dict[str, object]:
    """Count the rejections of one cell."""
    clean = metrics.rejected_examples(records, "clean_pred")
    rate = metrics.rate(int(clean.sum()), len(records))
    right = records["clean_correct"].to_numpy(dtype=bool)
    rejected = right & metrics.rejected_examples(records).to_numpy()
    answered = right & (records["adv_pred"].to_numpy() == records["label"].to_numpy())
    return {
        "clean_rejected": rate.k,
        "clean_rejection_rate": rate.value,
        "clean_rejection_low": rate.low,
        "clean_rejection_high": rate.high,
        "answered": int(answered.sum()),
        "rejected": int(rejected.sum()),
        "wrong": int((right & ~answered & ~rejected).sum()),
    }
