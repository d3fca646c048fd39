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


def tabulate_attacks(table: pd.DataFrame, eps_texts: Mapping[float, str]) -> list[View]:
    """Tabulate attacks by eps: robust accuracy, or success rate if targeted.

    Args:
        table: The rows of table.csv.
        eps_texts: Text of each eps, from `map_eps_texts`.

    Returns:
        One view per model, norm and goal.
    """
    found = []
    for (model, norm, goal), rows in group_rows(to_rows(table), "model", "norm", "goal").items():
        what = "success rate" if goal == "targeted" else "robust accuracy"
        clean = next((row for row in rows if row["status"] == "ok"), None)
        known = f"; {_clean(clean)}" if clean else ""
        caption = f"{format_text(model)}, {format_norm(norm)}, {format_text(goal)}: {what}{known}"
        found.append(
            pivot_by_eps(caption, rows, ("attack", "implementation"), eps_texts, format_outcome)
        )
    return found


def _clean(row: Row) -> str:
    k, n = row["clean_correct"], row["n"]
    share = DASH if is_missing(k) or is_missing(n) or n == 0 else format_percent(k / n)
    return f"clean accuracy {share} ({format_count(k, n)})"


def format_outcome(row: Row, notes: Footnotes) -> str:
    """Format robust accuracy, or success rate if targeted, with its interval.

    Args:
        row: A row of table.csv.
        notes: Footnotes, to which reasons and violations are added.

    Returns:
        The rate; a dash with a footnote if the cell has no number.
    """
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
    remarks = [text for text in (describe_violations(row), describe_certified(row)) if text]
    return f"{text} {notes.mark('; '.join(remarks))}" if remarks else text


def describe_violations(row: Row) -> str:
    """Say how many images of a cell broke the threat model.

    Args:
        row: A row of table.csv.

    Returns:
        A phrase; empty if none did.
    """
    broken = row.get("violations")
    if is_missing(broken) or not broken:
        return ""
    return f"{format_plural(int(broken), 'violation')}, each counted as a failed attack"


def describe_certified(row: Row) -> str:
    """Say how many examples of a number were certified and therefore not attacked.

    Args:
        row: A row of table.csv or worst.csv.

    Returns:
        A phrase; empty if there are none.
    """
    count = row.get("certified")
    if is_missing(count) or not count:
        return ""
    by = row.get("certified_by")
    return f"{int(count)} of {int(row['n'])} certified, not attacked" + (
        "" if is_missing(by) or not by else f" by {format_text(by)}"
    )


def list_certified(table: pd.DataFrame) -> list[str]:
    """Say at which eps attacks left certified examples out.

    Args:
        table: Rows of table.csv, of one model, norm and goal.

    Returns:
        A sentence for each number of examples and the attacks that left as many out.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for row in to_rows(table):
        if phrase := describe_certified(row):
            found.setdefault((str(row["eps_text"]), phrase), []).append(str(row["attack"]))
    return [
        f"eps {eps}: {phrase} by {', '.join(attacks)}" for (eps, phrase), attacks in found.items()
    ]


def tabulate_worst_case(
    worst: pd.DataFrame, table: pd.DataFrame, eps_texts: Mapping[float, str]
) -> list[View]:
    """Tabulate models by eps: robust accuracy under all attacks together.

    Args:
        worst: The rows of worst.csv.
        table: The rows of table.csv.
        eps_texts: Text of each eps, from `map_eps_texts`.

    Returns:
        One view per norm and goal.
    """
    planned = _planned(table)

    def cell(row: Row, notes: Footnotes) -> str:
        text = format_rate(row["robust_correct"], row["n"], row["robust_low"], row["robust_high"])
        remarks = [each for each in (_shortfall(row, planned), describe_certified(row)) if each]
        return f"{text} {notes.mark('; '.join(remarks))}" if remarks else text

    return [
        pivot_by_eps(
            f"{format_norm(norm)}, {goal or 'untargeted'}", rows, ("model",), eps_texts, cell
        )
        for (norm, goal), rows in group_rows(to_rows(worst), "norm", "goal").items()
    ]


def describe_failures(table: pd.DataFrame) -> list[str]:
    """Say why cells of a table have a dash in place of a number.

    Args:
        table: Rows of table.csv.

    Returns:
        A sentence for each attack and reason, with the eps at which it failed.
    """
    failed = [row for row in to_rows(table) if row["status"] == "failed"]
    return [
        f"{DASH} {attack} at eps {', '.join(str(row['eps_text']) for row in rows)} failed: "
        f"{format_text(reason)}"
        for (attack, reason), rows in group_rows(failed, "attack", "reason").items()
    ]


def describe_shortfalls(worst: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """Say where the worst case is over fewer attacks than the suite plans.

    Args:
        worst: Rows of worst.csv, of one model, norm and goal.
        table: The rows of table.csv.

    Returns:
        A sentence for each number of attacks, with the eps that it is true of.
    """
    planned = _planned(table)
    found: dict[str, list[str]] = {}
    for row in to_rows(worst):
        if shortfall := _shortfall(row, planned):
            found.setdefault(shortfall, []).append(str(row["eps_text"]))
    return [f"worst case at eps {', '.join(radii)}: {what}" for what, radii in found.items()]


def _shortfall(row: Row, planned: Mapping[tuple[Any, ...], Counter[str]]) -> str:
    """Say that a worst case is over fewer attacks than are planned; "" if it is not."""
    statuses = planned.get(_place(row), Counter())
    ran, failed, missing = row["attacks"], statuses["failed"], statuses["missing"]
    if not failed + missing:
        return ""
    why = "failed or are missing" if failed and missing else "failed" if failed else "are missing"
    wanted = statuses.total()
    return f"over {ran} of {wanted} attacks, the rest {why}: an upper bound of the worst case"


def _place(row: Row) -> tuple[Any, ...]:
    goal = row.get("goal")
    return row["model"], row["norm"], "untargeted" if is_missing(goal) else goal, float(row["eps"])


def _planned(table: pd.DataFrame) -> dict[tuple[Any, ...], Counter[str]]:
    """Count the statuses of the cells that are not skipped, place by place."""
    planned: dict[tuple[Any, ...], Counter[str]] = {}
    for row in to_rows(table):
        if row["status"] != "skipped":
            planned.setdefault(_place(row), Counter())[row["status"]] += 1
    return planned


def tabulate_worst_case_counts(
    worst: pd.DataFrame, table: pd.DataFrame, eps_texts: Mapping[float, str]
) -> View | None:
    """Tabulate the worst case with its counts and the attack that broke an example first.

    Args:
        worst: The rows of worst.csv.
        table: The rows of table.csv.
        eps_texts: Text of each eps, from `map_eps_texts`.

    Returns:
        The view, or None if no attack produced a number.
    """
    planned, notes = _planned(table), Footnotes()

    def rate(row: Row) -> str:
        text = format_rate(row["robust_correct"], row["n"], row["robust_low"], row["robust_high"])
        phrase = describe_certified(row)
        return f"{text} {notes.mark(phrase)}" if phrase else text

    lines = [
        [format_text(row["model"]), format_norm(row["norm"]),
         format_text(row.get("goal", "untargeted")),
         format_eps(row["eps"], eps_texts), format_count(row["robust_correct"], row["n"]),
         rate(row),
         f"{row['attacks']} of {planned.get(_place(row), Counter()).total() or row['attacks']}",
         format_text(row["broken_by"])]
        for row in to_rows(worst)
    ]  # fmt: skip
    columns = ["model", "norm", "goal", "eps", "robust", "robust accuracy", "attacks", "broken by"]
    return View("", columns, lines, notes.texts) if lines else None
