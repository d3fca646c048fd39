"""Rank minimum-norm attacks by the distances that they found."""

from collections.abc import Sequence

import pandas as pd

from bench.reporting.formats.numbers import (
    DASH,
    format_count,
    format_norm,
    format_number,
    format_text,
    is_missing,
)
from bench.reporting.report.views import Footnotes, Row, View, group_rows, to_rows


def rank_searches(frame: pd.DataFrame) -> list[View]:
    """Rank minimum-norm attacks by local optimality, the best first.

    Args:
        frame: The rows of distances.csv.

    Returns:
        A view over all models if there are several, then one per model, norm, goal and target. An
        attack without a score comes last, with its reason.
    """
    rows = to_rows(frame)
    found = [_over_models(rows)] if frame["model"].nunique() > 1 else []
    for (model, norm, goal, target), lines in group_rows(
        rows, "model", "norm", "goal", "target"
    ).items():
        notes = Footnotes()
        ranked = sorted(lines, key=lambda row: -_optimality(row))
        aim = f"{goal} {format_text(target)}" if target else goal
        caption = (
            f"{format_text(model)}, {format_norm(norm)}, {format_text(aim)}: minimum distances"
        )
        columns = ["attack", "implementation", "local optimality", "found", "median distance"]
        columns += ["mean distance, clipped", "forward passes", "backward passes"]
        body = [_format_search(row, notes) for row in ranked]
        found.append(View(caption, columns, body, notes.texts))
    return found


def _optimality(row: Row) -> float:
    return -1.0 if is_missing(row["local_optimality"]) else float(row["local_optimality"])


def _format_search(row: Row, notes: Footnotes) -> list[str]:
    name = [format_text(row["attack"]), format_text(row["implementation"])]
    if row["status"] != "ok" or is_missing(row["n"]):
        reason = f"{row['status']}: {format_text(row['reason'])}"
        return [*name, f"{DASH} {notes.mark(reason)}", *[DASH] * 5]
    low, high = (format_number(row[f"median_{side}"]) for side in ("low", "high"))
    return [
        *name, format_number(row["local_optimality"]), format_count(row["found"], row["attacked"]),
        f"{format_number(row['median_distance'])} [{low}, {high}]",
        format_number(row["mean_clipped_distance"]),
        format_number(row["forwards_per_example"]), format_number(row["backwards_per_example"]),
    ]  # fmt: skip


def _over_models(rows: Sequence[Row]) -> View:
    """Tabulate local optimality on each model, and the mean of those scored on all."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    lines = []
    for (attack, norm, goal, target), cells in group_rows(
        rows, "attack", "norm", "goal", "target"
    ).items():
        scores = {row["model"]: row["local_optimality"] for row in cells}
        scores_by_model = [
            float("nan" if score is None else score) for score in map(scores.get, models)
        ]
        mean = sum(scores_by_model) / len(scores_by_model)
        aim = f"{goal} {format_text(target)}" if target else goal
        lines.append(
            [
                format_text(attack),
                format_norm(norm),
                format_text(aim),
                *map(format_number, scores_by_model),
                format_number(mean),
            ]
        )
    columns = ["attack", "norm", "goal", *map(format_text, models), "mean: global optimality"]
    return View("Local optimality on every model", columns, lines)
