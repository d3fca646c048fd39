"""Errors under common corruptions: by corruption and severity, and their means.

A corrupted image counts as an error if the model's class is not its label; unlike in robust
accuracy, an image that is misclassified without corruption and classified correctly with it is no
error. Every example is corrupted, so the error of a cell is (wrong predictions) / n.

The mean corruption error is the mean over all fifteen corruptions of the paper and five severities;
without all 75 cells it is missing. It is unnormalised unless the suite names a baseline model. Then
the error of a corruption is the sum over severities of the model's errors over that of the
baseline's, and mCE is the mean of these ratios.
Source: Hendrycks and Dietterich 2019, section 4.1, https://arxiv.org/abs/1903.12261
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from bench.engine.threats.corruption import CORRUPTIONS, SEVERITIES
from bench.storage.reader import StoredRecords
from bench.suite.plan import Cell

_WRONG = tuple(f"wrong_{severity}" for severity in SEVERITIES)
COLUMNS = (
    "model", "attack", "corruption", "n", "clean_wrong", *_WRONG, "mean_error", "baseline",
    "baseline_mean_error", "corruption_error",
)  # fmt: skip
MEAN_COLUMNS = (
    "model", "attack", "n", "clean_wrong", "cells", "wrong", "mean_error", "baseline", "mce",
)  # fmt: skip
COUNTS = ("n", "clean_wrong", *_WRONG)
MEAN_COUNTS = ("n", "clean_wrong", "cells", "wrong")
COMPLETE = len(CORRUPTIONS) * len(SEVERITIES)
"""Cells of a mean corruption error."""
_Key = tuple[str, str, str]


class CorruptionResults(NamedTuple):
    """Errors of a run's models under common corruptions; both are empty without such attacks."""

    errors: pd.DataFrame
    """One row per model, attack and corruption, columns COLUMNS. A severity whose cell is not
    finished, or has a violation, has no count."""
    means: pd.DataFrame
    """One row per model and attack, columns MEAN_COLUMNS."""


def summarize_corruptions(
    plan: Sequence[Cell], table: pd.DataFrame, stored: StoredRecords, baseline: str = ""
) -> CorruptionResults:
    """Count the errors under common corruptions.

    Args:
        plan: The cells of the suite.
        table: That of `tables.cell_table`.
        stored: Per-example records.
        baseline: Label of the model that normalises; "" for none.

    Returns:
        Errors by corruption, and their means.
    """
    done = table[(table["status"] == "ok") & (table["violations"] == 0)]
    finished = set(done["cell"])
    positions = stored.row_positions()
    counted: dict[_Key, dict[str, object]] = {}
    for cell in plan:
        corruption = cell.traits.get("corruption", "")
        if corruption not in CORRUPTIONS or cell.eps not in SEVERITIES or cell.source:
            continue
        name = f"{cell.family or cell.attack}{'' if cell.seed is None else f', seed {cell.seed}'}"
        row = counted.setdefault((cell.model, name, corruption), {})
        if cell.identity not in finished:
            continue
        records = stored.frame.iloc[positions[cell.identity]]
        row["n"] = len(records)
        row["clean_wrong"] = int((~records["clean_correct"].astype(bool)).sum())
        # A rejected image was not classified: that is an error here in either counting.
        wrong = records["adv_pred"].to_numpy() != records["label"].to_numpy()
        row[f"wrong_{int(cell.eps)}"] = int(wrong.sum())
    errors = _add_errors(counted, baseline)
    return CorruptionResults(errors, _average(errors, baseline))


def _add_errors(counted: Mapping[_Key, Mapping[str, object]], baseline: str) -> pd.DataFrame:
    """Add the mean errors to the counts, and the ratios to the baseline."""
    rows = [
        {"model": model, "attack": attack, "corruption": corruption, **row, "baseline": baseline}
        for (model, attack, corruption), row in counted.items()
    ]
    errors = pd.DataFrame(rows, columns=list(COLUMNS))
    errors[list(COUNTS)] = errors[list(COUNTS)].astype("Int64")
    # Missing as soon as one severity is: means of other severities are not comparable.
    total = errors[list(_WRONG)].sum(axis=1, skipna=False)
    errors["mean_error"] = (total / (errors["n"] * len(SEVERITIES))).astype("Float64")
    own = errors[errors["model"] == baseline].set_index(["attack", "corruption"])["mean_error"]
    keys = pd.MultiIndex.from_frame(errors[["attack", "corruption"]])
    errors["baseline_mean_error"] = pd.array(own.reindex(keys).to_list(), dtype="Float64")
    measured = errors["baseline_mean_error"].where(errors["baseline_mean_error"] > 0)
    errors["corruption_error"] = errors["mean_error"] / measured
    return errors


def _average(errors: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Average over corruptions, where all of them are there."""
    rows = []
    for (model, attack), group in errors.groupby(["model", "attack"], sort=False):
        counts = group[list(_WRONG)]
        cells = int(counts.notna().to_numpy().sum())
        complete = cells == COMPLETE and group["n"].nunique() == 1
        first = group.iloc[0]
        rows.append(
            {
                "model": model,
                "attack": attack,
                "n": first["n"] if complete else None,
                "clean_wrong": first["clean_wrong"] if complete else None,
                "cells": cells,
                "wrong": int(counts.to_numpy().sum()) if complete else None,
                "mean_error": group["mean_error"].mean() if complete else None,
                "baseline": baseline,
                # Missing where the baseline made no error under a corruption: there is no ratio.
                "mce": group["corruption_error"].mean(skipna=False)
                if complete and baseline
                else None,
            }
        )
    means = pd.DataFrame(rows, columns=list(MEAN_COLUMNS))
    means[list(MEAN_COUNTS)] = means[list(MEAN_COUNTS)].astype("Int64")
    return means.astype({"mean_error": "Float64", "mce": "Float64"})
