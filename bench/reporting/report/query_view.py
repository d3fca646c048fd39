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
        columns += ["median distance", "quartiles"]
        views.append(View(caption, columns, [_format(row, notes) for row in rows], notes.texts))
    return views


def _format(row: Row, notes: Footnotes) -> list[str]:
    attack = format_text(row["attack"])
    if row["status"] != "ok":
        reason = f"{attack}: {row['status']}: {format_text(row['reason'])}"
        return [attack, f"{DASH} {notes.mark(reason)}", *[DASH] * 6]
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
        _format_quartiles(row),
    ]


def _format_quartiles(row: Row) -> str:
    """Format the quartiles of the distance; a dash for one that is not finite."""
    low, high = row["lower_quartile_distance"], row["upper_quartile_distance"]
    if is_missing(low):
        return DASH
    return ", ".join(DASH if end == float("inf") else format_number(end) for end in (low, high))


def _format_median(row: Row, name: str, notes: Footnotes) -> str:
    """Format a median with its interval; a dash where there is none."""
    value = row[name]
    if is_missing(value):
        return DASH
    if value == float("inf"):
        return f"{DASH} {notes.mark(LOST)}"
    low, high = (format_number(row[f"{name}_{end}"]) for end in ("low", "high"))
    return f"{format_number(value)} [{low}, {high}]"


def tabulate_pairs(frame: pd.DataFrame) -> list[View]:
    """Tabulate which of two searches is nearer, a column per budget.

    Args:
        frame: The rows of query_pairs.csv.

    Returns:
        A view per model, norm and goal: on how many examples the first and the second attack found
        the smaller distance, and the corrected p-value of the sign test.
    """
    views = []
    for (model, norm, goal, target), rows in group_rows(
        to_rows(frame), "model", "norm", "goal", "target"
    ).items():
        budgets = sorted({int(row["budget"]) for row in rows})
        aim = f"{goal} {format_text(target)}" if target else str(goal)
        caption = (
            f"{format_text(model)}, {format_norm(norm)}, {format_text(aim)}, n = {rows[0]['n']}: "
            "examples on which the first : the second attack is nearer within a number of queries"
        )
        lines = []
        for (first, second), cells in group_rows(rows, "first", "second").items():
            at = {int(row["budget"]): _format_pair(row) for row in cells}
            lines.append(
                [format_text(first), format_text(second), *(at.get(each, DASH) for each in budgets)]
            )
        views.append(View(caption, ["first", "second", *map(format_whole, budgets)], lines))
    return views


def _format_pair(row: Row) -> str:
    """Format the two counts and the p-value of one pair at one budget."""
    p_value = row["p_corrected"]
    chance = "p < 0.0001" if p_value < 1e-4 else f"p = {p_value:.2g}"
    return f"{row['nearer_first']} : {row['nearer_second']} ({chance})"
