"""Tabulate the queries of the evaluated model by attacks on a source, beside their success."""

from collections.abc import Mapping

import pandas as pd

from bench.reporting.formats.numbers import (
    DASH,
    format_eps,
    format_norm,
    format_number,
    format_rate,
    format_text,
    format_whole,
    is_missing,
)
from bench.reporting.report.views import Row, View, to_rows

CAPTION = (
    "Queries of the evaluated model by attacks on a source: the images of an example that it was "
    "shown until the first success. The median is over the fooled examples, the maximum over all "
    "that were attacked"
)


def tabulate_victim_queries(table: pd.DataFrame, eps_texts: Mapping[float, str]) -> list[View]:
    """Tabulate budget, success and queries of each cell whose attack may query the victim.

    Args:
        table: The rows of table.csv.
        eps_texts: Text of each eps, from `map_eps_texts`.

    Returns:
        One view; none if no attack has a budget of such queries. Cells without a number are listed
        elsewhere.
    """
    if "victim_query_budget" not in table:
        return []
    rows = [row for row in to_rows(table) if not is_missing(row["victim_query_budget"])]
    if not rows:
        return []
    columns = ["model", "attack", "norm", "goal", "eps", "budget", "attack success rate"]
    columns += ["median queries", "maximum"]
    return [View(CAPTION, columns, [_format(row, eps_texts) for row in rows])]


def _format(row: Row, eps_texts: Mapping[float, str]) -> list[str]:
    return [
        format_text(row["model"]),
        format_text(row["attack"]),
        format_norm(row["norm"]),
        format_text(row["goal"]),
        format_eps(row["eps"], eps_texts),
        format_whole(row["victim_query_budget"]),
        format_rate(row["fooled"], row["eligible"], row["success_low"], row["success_high"])
        if row["eligible"]
        else DASH,
        _format_median(row),
        format_whole(row["max_victim_queries"]),
    ]


def _format_median(row: Row) -> str:
    """Format the median with its interval, where there is one."""
    value = row["median_victim_queries"]
    if is_missing(value):
        return DASH
    low, high = (row[f"median_victim_queries_{end}"] for end in ("low", "high"))
    interval = "" if is_missing(low) else f" [{format_number(low)}, {format_number(high)}]"
    return f"{format_number(value)}{interval}"
