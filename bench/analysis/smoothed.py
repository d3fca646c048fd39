"""Count what randomised smoothing certified: certified accuracy of a smoothed classifier by radius.

An example counts at radius r if the smoothed classifier predicts its label and is certified further
than r; where it abstains, it is certified at no radius. The results are of the smoothed classifier:
no attack of the run attacked it, so they are not compared with attacks.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bench.evaluation import metrics
from bench.evaluation.certification import store
from bench.suite.plan import CertificationTask

COLUMNS = (
    "suite", "model", "dataset", "norm", "sigma", "n0", "draws", "alpha", "radius", "status",
    "reason", "n", "correct", "abstained", "certified_correct", "certified_accuracy",
    "certified_low", "certified_high", "seconds", "radius_text",
)  # fmt: skip
COUNTS = ("n", "correct", "abstained", "certified_correct")
CURVE_COLUMNS = (
    "suite", "model", "dataset", "norm", "sigma", "radius", "n", "certified_correct",
    "certified_accuracy", "certified_low", "certified_high",
)  # fmt: skip
EXAMPLE_COLUMNS = (
    "suite", "model", "dataset", "norm", "sigma", "example", "label", "predicted", "count", "draws",
    "probability_low", "radius", "abstained",
)  # fmt: skip


class SmoothedResults(NamedTuple):
    """Certificates of the smoothed classifiers of a run's models."""

    table: pd.DataFrame
    """One row per model, sigma and radius of the suite, columns COLUMNS."""
    curve: pd.DataFrame
    """One row per model, sigma and radius from which on fewer examples are certified, columns
    CURVE_COLUMNS; the first is radius 0."""
    examples: pd.DataFrame
    """One row per model, sigma and example, columns EXAMPLE_COLUMNS."""


def read_smoothed(folder: Path, provenance: Mapping[str, Any]) -> SmoothedResults:
    """Read the certificates of a run's smoothed classifiers.

    Args:
        folder: Folder of the run.
        provenance: Its manifest.

    Returns:
        Certified accuracy at each radius of the suite, at all radii, and of each example; empty
        unless the suite smooths.

    Raises:
        RecordError: A file is damaged or newer than this bench.
    """
    tasks = [CertificationTask.from_manifest(each) for each in provenance.get("certify", [])]
    wanted = [task for task in tasks if task.smoothing is not None]
    stored = store.read_certificates(folder) if wanted else []
    rows: list[dict[str, Any]] = []
    curves, examples = [], []
    for task in wanted:
        assert task.smoothing is not None
        settings = task.smoothing
        about = {
            "suite": provenance["suite"]["name"], "model": task.model,
            "dataset": provenance["data"]["name"], "norm": task.norm, "sigma": settings.sigma,
        }  # fmt: skip
        details = {"n0": settings.n0, "draws": settings.n, "alpha": settings.alpha}
        radii = [
            {**about, **details, "radius": radius, "radius_text": text}
            for radius, text in zip(task.eps, task.eps_texts, strict=True)
        ]
        own = [(head, frame) for head, frame in stored
               if head["identity"] == task.identity and store.is_smoothed(head)]  # fmt: skip
        done, n = sum(len(frame) for _, frame in own), provenance["data"]["n"]
        if task.reason or done < n:
            left = f"{done} of {n} examples are done; run the suite again to go on"
            status = "skipped" if task.reason else "missing"
            rows += [{**row, "status": status, "reason": task.reason or left} for row in radii]
            continue
        frame = pd.concat([frame for _, frame in own], ignore_index=True)
        seconds = sum(sum(head["seconds"]) for head, _ in own)
        rows += [{**row, **_count(frame, row["radius"]), "seconds": seconds} for row in radii]
        curves.append(pd.DataFrame(_curve(frame)).assign(**about))
        examples.append(frame.assign(**about))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table[list(COUNTS)] = table[list(COUNTS)].astype("Int64")
    return SmoothedResults(
        table, _concatenate(curves, CURVE_COLUMNS), _concatenate(examples, EXAMPLE_COLUMNS)
    )


def _concatenate(frames: Sequence[pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    if not frames:
        return pd.DataFrame(columns=list(columns))
    return pd.concat(frames, ignore_index=True)[list(columns)]


def correct_examples(examples: pd.DataFrame) -> metrics.Outcomes:
    """Select the examples whose label the smoothed classifier predicts without abstaining.

    Args:
        examples: One row per example: columns label, predicted, abstained.

    Returns:
        Bool, indexed as the examples.
    """
    return (examples["predicted"] == examples["label"]) & ~examples["abstained"].astype(bool)


def certified_examples(examples: pd.DataFrame, radius: float) -> metrics.Outcomes:
    """Select the examples that are correct and certified further than a radius.

    Args:
        examples: One row per example: columns label, predicted, abstained, radius.
        radius: L2 radius, in units of pixel values.

    Returns:
        Bool, indexed as the examples.
    """
    return correct_examples(examples) & (examples["radius"] > radius)


def _count(examples: pd.DataFrame, radius: float) -> dict[str, Any]:
    """Compute the figures of one row of the table."""
    rate = metrics.rate(int(certified_examples(examples, radius).sum()), len(examples))
    return {
        "status": "ok",
        "reason": "",
        "n": rate.n,
        "correct": int(correct_examples(examples).sum()),
        "abstained": int(examples["abstained"].sum()),
        "certified_correct": rate.k,
        "certified_accuracy": rate.value,
        "certified_low": rate.low,
        "certified_high": rate.high,
    }


def _curve(examples: pd.DataFrame) -> list[dict[str, Any]]:
    """Compute the certified accuracy at 0 and at every radius at which it falls."""
    radii = np.sort(examples.loc[certified_examples(examples, 0.0), "radius"].to_numpy())
    steps = np.unique(np.append(0.0, radii))
    left = len(radii) - np.searchsorted(radii, steps, side="right")  # certified further than each
    rates = [metrics.rate(int(count), len(examples)) for count in left]
    return [
        {
            "radius": float(radius),
            "n": rate.n,
            "certified_correct": rate.k,
            "certified_accuracy": rate.value,
            "certified_low": rate.low,
            "certified_high": rate.high,
        }
        for radius, rate in zip(steps, rates, strict=True)
    ]
