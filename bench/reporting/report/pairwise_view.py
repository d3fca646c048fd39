"""Tabulate paired comparisons: significant differences, and results over seeds."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from bench.evaluation import metrics
from bench.reporting.formats.numbers import (
    format_count,
    format_eps,
    format_norm,
    format_number,
    format_plural,
    format_rate,
    format_text,
    is_missing,
)
from bench.reporting.report.views import Footnotes, Row, View, group_rows, pivot_by_eps, to_rows

_PAIR = ("compared", "model", "attack", "norm", "goal", "target", "first", "second")


def summarize_comparisons(frame: pd.DataFrame) -> str:
    """Count the comparisons and those with a significant difference, in a sentence.

    Args:
        frame: The rows of comparisons.csv.

    Returns:
        The sentence.
    """
    if not len(frame):
        needed = "it takes two attacks on one model, or two models under one attack"
        return f"Nothing was compared: {needed}."
    differ = int((frame["p_corrected"] <= metrics.SIGNIFICANCE_LEVEL).sum())
    return (
        f"{format_plural(len(frame), 'comparison')}: {differ} with a significant difference (5 %, "
        f"corrected for all {len(frame)}), {len(frame) - differ} without."
    )


def tabulate_differences(frame: pd.DataFrame, eps_texts: Mapping[float, str]) -> list[View]:
    """Tabulate, eps by eps, on how many examples only one side of a pair is broken or robust.

    A pair without a significant difference at any eps has no line.

    Args:
        frame: The rows of comparisons.csv.
        eps_texts: Text of each eps, from `map_eps_texts`.

    Returns:
        One view per compared kind, model, norm, goal and target.
    """
    rows = to_rows(frame)
    beyond = group_rows(_significant(rows), *_PAIR)

    def cell(row: Row, notes: Footnotes) -> str:
        plain = row["p_corrected"] > metrics.SIGNIFICANCE_LEVEL
        return "n.s." if plain else f"{row['only_first']} : {row['only_second']}"

    found = []
    shown = [row for row in rows if _key(row) in beyond]
    for (what, model, norm, goal, target), lines in group_rows(
        shown, "compared", "model", "norm", "goal", "target"
    ).items():
        about = [
            *([] if model is None else [format_text(model)]),
            format_norm(norm),
            format_text(goal),
        ]
        about += [] if target is None else [format_text(target)]
        verb = "robust on" if what == "models" else "broken by"
        caption = f"{', '.join(about)}: examples {verb} only the first : only the second"
        keys = ("attack", "first", "second") if what == "models" else ("first", "second")
        found.append(pivot_by_eps(caption, lines, keys, eps_texts, cell))
    return found


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(None if is_missing(row[key]) else row[key] for key in _PAIR)


def _significant(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["p_corrected"] <= metrics.SIGNIFICANCE_LEVEL]


def list_differences(frame: pd.DataFrame, eps_texts: Mapping[float, str]) -> View | None:
    """List every significant difference in a sentence.

    Args:
        frame: The rows of comparisons.csv.
        eps_texts: Text of each eps, from `map_eps_texts`.

    Returns:
        The view, or None without a significant difference.
    """
    lines = [
        [format_text(row["attack"] if row["compared"] == "models" else row["model"]),
         format_norm(row["norm"]), format_text(row["goal"]), format_eps(row["eps"], eps_texts),
         str(row["n"]),
         format_text(row["sentence"])]
        for row in _significant(to_rows(frame))
    ]  # fmt: skip
    columns = ["on or under", "norm", "goal", "eps", "n", "difference"]
    return View("", columns, lines) if lines else None


def tabulate_seeds(frame: pd.DataFrame, eps_texts: Mapping[float, str]) -> list[View]:
    """Tabulate how many examples stay robust under each seed and under all seeds.

    Args:
        frame: The rows of seeds.csv.
        eps_texts: Text of each eps, from `map_eps_texts`.

    Returns:
        One view per model, norm and goal.
    """
    found = []
    for (model, norm, goal), rows in group_rows(to_rows(frame), "model", "norm", "goal").items():
        lines = [
            [format_text(row["attack"]), format_eps(row["eps"], eps_texts),
             format_text(row["seeds"]),
             f"{row['least']}, {format_number(row['median'], 9)}, {row['most']} of {row['n']}",
             *(format_rate(row[side], row["n"], row[f"{side}_low"], row[f"{side}_high"])
               for side in ("least", "most", "union")),
             format_count(row["union"], row["n"])]
            for row in rows
        ]  # fmt: skip
        columns = ["attack", "eps", "seeds", "robust: least, median, most", "least", "most"]
        columns += ["under every seed", "robust under every seed"]
        place = f"{format_text(model)}, {format_norm(norm)}, {format_text(goal)}"
        caption = f"{place}: robust accuracy over seeds"
        found.append(View(caption, columns, lines))
    return found
