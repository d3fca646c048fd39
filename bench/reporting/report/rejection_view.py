"""Describe what the detectors of models rejected."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from bench.core.contracts.detector import Detector
from bench.reporting.formats.numbers import (
    format_count,
    format_eps,
    format_norm,
    format_rate,
    format_text,
)
from bench.reporting.report.views import View, to_rows


def describe_detectors(
    rejections: pd.DataFrame, models: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Describe each detector and its false rejections of clean images in a sentence.

    Args:
        rejections: The rows of rejections.csv.
        models: Label of a model -> its entry in the manifest.

    Returns:
        A sentence for each model with a detector and a finished cell.
    """
    sentences = []
    for row in to_rows(rejections.drop_duplicates("model")):
        detector = Detector(**models[row["model"]]["detector"])
        rate = format_rate(
            row["clean_rejected"], row["n"], row["clean_rejection_low"], row["clean_rejection_high"]
        )
        count = format_count(row["clean_rejected"], row["n"])
        sentences.append(
            f"{format_text(row['model'])} {detector.describe()}. It rejects {rate}, {count}, of "
            "the clean images."
        )
    return sentences


def tabulate_rejections(rejections: pd.DataFrame, eps_texts: Mapping[float, str]) -> View | None:
    """Tabulate what became of the examples that were classified correctly without attack.

    Args:
        rejections: The rows of rejections.csv.
        eps_texts: Radius -> as the suite spells it.

    Returns:
        The view, or None without a detector.
    """
    lines = [
        [format_text(row["model"]), format_text(row["attack"]), format_norm(row["norm"]),
         format_text(row["goal"]), format_eps(row["eps"], eps_texts),
         *(format_count(row[name], row["clean_correct"])
           for name in ("answered", "rejected", "wrong")),
         format_rate(row["robust_correct"], row["n"], row["robust_low"], row["robust_high"])]
        for row in to_rows(rejections[rejections["eps"] > 0])
    ]  # fmt: skip
    columns = ["model", "attack", "norm", "goal", "eps", "answered", "rejected", "wrong"]
    return View("", [*columns, "robust accuracy"], lines) if lines else None
