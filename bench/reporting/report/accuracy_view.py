"""Tabulate robust accuracy: attack by attack, and the worst case over all attacks."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pandas as pd

from bench.reporting.formats.numbers import (
    DASH,
    format_count,
    format_eps,
    format_interval,
    format_norm,
    format_percent,
    format_plural,
    format_rate,
    format_text,
    is_missing,
)
from bench.reporting.report.views import Footnotes, Row, View, group_rows, pivot_by_eps, to_rows


def tabulate_attacks(table: pd.DataFrame, names: Mapping[float, str]) -> list[View]:
    """Per model, norm and goal: attacks by eps; robust accuracy, or success where targeted."""
    found = []
    for (model, norm, goal), rows in group_rows(to_rows(table), "model", "norm", "goal").items():
        what = "success rate" if goal == "targeted" else "robust accuracy"
        clean = next((row for row in rows if row["status"] == "ok"), None)
        known = f"; {_clean(clean)}" if clean else ""
        caption = f"{format_text(model)}, {format_norm(norm)}, {format_text(goal)}: {what}{known}"
        found.append(pivot_by_eps(caption, rows, ("attack", "implementation"), names, _outcome))
    return found


def _clean(row: Row) -> str:
    k, n = row["clean_correct"], row["n"]
    share = DASH if is_missing(k) or is_missing(n) or n == 0 else format_percent(k / n)
    return f"clean accuracy {share} ({format_count(k, n)})"


def _outcome(row: Row, notes: Footnotes) -> str:
    if row["status"] != "ok":
        reason = f"{row['status']}: {format_text(row['reason'])}"
        return f"{DASH} {notes.mark(reason)}"
    if row["goal"] == "targeted":
        share, low, high = (row[k] for k in ("attack_success_rate", "success_low", "success_high"))
        text = (
            DASH if is_missing(share) else f"{format_percent(share)} {format_interval(low, high)}"
        )
    else:
        text = format_rate(row["robust_correct"], row["n"], row["robust_low"], row["robust_high"])
    broken = row.get("violations")
    if is_missing(broken) or not broken:
        return text
    told = f"{format_plural(int(broken), 'violation')}, each counted as an attack that failed"
    return f"{text} {notes.mark(told)}"


def tabulate_worst_case(
    worst: pd.DataFrame, table: pd.DataFrame, names: Mapping[float, str]
) -> list[View]:
    """Per norm and goal: what every attack together left, models by eps."""
    planned = _planned(table)

    def cell(row: Row, notes: Footnotes) -> str:
        text = format_rate(row["robust_correct"], row["n"], row["robust_low"], row["robust_high"])
        ran, wanted = row["attacks"], planned.get(_place(row), row["attacks"])
        return text if ran == wanted else f"{text} {notes.mark(_shortfall(ran, wanted))}"

    return [
        pivot_by_eps(f"{format_norm(norm)}, {goal or 'untargeted'}", rows, ("model",), names, cell)
        for (norm, goal), rows in group_rows(to_rows(worst), "norm", "goal").items()
    ]


def _shortfall(ran: Any, wanted: Any) -> str:
    return f"over {ran} of {wanted} attacks, the rest failed: an upper bound of the worst case"


def _place(row: Row) -> tuple[Any, ...]:
    goal = row.get("goal")
    return row["model"], row["norm"], "untargeted" if is_missing(goal) else goal, float(row["eps"])


def _planned(table: pd.DataFrame) -> dict[tuple[Any, ...], int]:
    return Counter(_place(row) for row in to_rows(table) if row["status"] != "skipped")


def tabulate_worst_case_counts(
    worst: pd.DataFrame, table: pd.DataFrame, names: Mapping[float, str]
) -> View | None:
    """The worst case with its counts, and which attack broke an example first."""
    planned = _planned(table)
    lines = [
        [format_text(row["model"]), format_norm(row["norm"]),
         format_text(row.get("goal", "untargeted")),
         format_eps(row["eps"], names), format_count(row["robust_correct"], row["n"]),
         format_rate(row["robust_correct"], row["n"], row["robust_low"], row["robust_high"]),
         f"{row['attacks']} of {planned.get(_place(row), row['attacks'])}",
         format_text(row["broken_by"])]
        for row in to_rows(worst)
    ]  # fmt: skip
    columns = ["model", "norm", "goal", "eps", "robust", "robust accuracy", "attacks", "broken by"]
    return View("", columns, lines) if lines else None
