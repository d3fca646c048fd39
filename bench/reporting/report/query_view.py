"""Tabulate robust accuracy and distance against the queries of an attack."""

import pandas as pd

from bench.reporting.formats.numbers import (
    DASH,
    format_norm,
    format_number,
    format_rate,
    format_text,
    format_whole,
    is_missing,
)
from bench.reporting.report.views import Footnotes, Row, View, group_rows, to_rows

MOMENT = (
    "one moment of a run with more queries: with fewer steps this attack takes other steps, so "
    "that a run with as many queries has another result."
)
LOST = "more than half of the examples are not fooled within so many queries."


def tabulate_queries(frame: pd.DataFrame) -> list[View]:
    """Tabulate the attacks at each of their budgets.

    Args:
        frame: The rows of queries.csv.

    Returns:
        A view per model, norm, eps and goal; a cell whose queries are not known has a dash and the
        reason as a footnote.
    """
    views = []
    for (model, norm, eps, goal, target), rows in group_rows(
        to_rows(frame), "model", "norm", "eps_text", "goal", "target"
    ).items():
        aim = f"{goal} {format_text(target)}" if target else str(goal)
        caption = (
            f"{format_text(model)}, {format_norm(norm)}, eps {format_text(eps)}, "
            f"{format_text(aim)}: within a number of queries"
        )
        notes = Footnotes()
        rate = "robust accuracy" if goal == "untargeted" else "attack success rate"
        columns = ["attack", "queries", rate, "fooled", "median queries", "mean queries"]
        columns += ["median distance"]
        views.append(View(caption, columns, [_format(row, notes) for row in rows], notes.texts))
    return views


def _format(row: Row, notes: Footnotes) -> list[str]:
    attack = format_text(row["attack"])
    if row["status"] != "ok":
        reason = f"{attack}: {row['status']}: {format_text(row['reason'])}"
        return [attack, f"{DASH} {notes.mark(reason)}", *[DASH] * 5]
    budget = format_whole(row["budget"])
    if not row["anytime"]:
        budget += f" {notes.mark(f'{attack}: {MOMENT}')}"
    untargeted = row["goal"] == "untargeted"
    k, n = ("robust_correct", "n") if untargeted else ("fooled", "eligible")
    side = "robust" if untargeted else "success"
    return [
        attack,
        budget,
        DASH
        if not row[n]
        else format_rate(row[k], row[n], row[f"{side}_low"], row[f"{side}_high"]),
        format_whole(row["fooled"]),
        _format_median(row, "median_queries", notes),
        DASH if is_missing(row["mean_queries"]) else format_number(row["mean_queries"]),
        _format_median(row, "median_distance", notes),
    ]


def _format_median(row: Row, name: str, notes: Footnotes) -> str:
    """Format a median with its interval; a dash where there is none."""
    value = row[name]
    if is_missing(value):
        return DASH
    if value == float("inf"):
        return f"{DASH} {notes.mark(LOST)}"
    low, high = (format_number(row[f"{name}_{end}"]) for end in ("low", "high"))
    return f"{format_number(value)} [{low}, {high}]"
