"""Comparisons → views: which differences are beyond chance, and what several seeds leave."""

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
    """How many comparisons there are, and how many of them show a difference."""
    if not len(frame):
        told = "it takes two attacks on one model, or two models under one attack"
        return f"Nothing was compared: {told}."
    differ = int((frame["p_corrected"] <= metrics.SIGNIFICANT).sum())
    return (
        f"{format_plural(len(frame), 'comparison')}: {differ} with a significant difference (5 %, "
        f"corrected for all {len(frame)}), {len(frame) - differ} without."
    )


def tabulate_differences(frame: pd.DataFrame, names: Mapping[float, str]) -> list[View]:
    """Pair by pair and eps by eps, on how many examples one side alone has what is compared.

    A pair without a difference beyond chance at any eps has no line.
    """
    rows = to_rows(frame)
    beyond = group_rows(_significant(rows), *_PAIR)

    def cell(row: Row, notes: Footnotes) -> str:
        plain = row["p_corrected"] > metrics.SIGNIFICANT
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
        told = "robust on" if what == "models" else "broken by"
        caption = f"{', '.join(about)}: examples {told} the first alone : the second alone"
        keys = ("attack", "first", "second") if what == "models" else ("first", "second")
        found.append(pivot_by_eps(caption, lines, keys, names, cell))
    return found


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(None if is_missing(row[key]) else row[key] for key in _PAIR)


def _significant(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["p_corrected"] <= metrics.SIGNIFICANT]


def list_differences(frame: pd.DataFrame, names: Mapping[float, str]) -> View | None:
    """Every difference beyond chance, in a sentence."""
    lines = [
        [format_text(row["attack"] if row["compared"] == "models" else row["model"]),
         format_norm(row["norm"]), format_text(row["goal"]), format_eps(row["eps"], names),
         str(row["n"]),
         format_text(row["sentence"])]
        for row in _significant(to_rows(frame))
    ]  # fmt: skip
    columns = ["on or under", "norm", "goal", "eps", "n", "difference"]
    return View("", columns, lines) if lines else None


def tabulate_seeds(frame: pd.DataFrame, names: Mapping[float, str]) -> list[View]:
    """Per model, norm and goal: how many examples stay robust, seed by seed and under all."""
    found = []
    for (model, norm, goal), rows in group_rows(to_rows(frame), "model", "norm", "goal").items():
        lines = [
            [format_text(row["attack"]), format_eps(row["eps"], names), format_text(row["seeds"]),
             f"{row['least']}, {format_number(row['median'], 9)}, {row['most']} of {row['n']}",
             *(format_rate(row[side], row["n"], row[f"{side}_low"], row[f"{side}_high"])
               for side in ("least", "most", "union")),
             format_count(row["union"], row["n"])]
            for row in rows
        ]  # fmt: skip
        columns = ["attack", "eps", "seeds", "robust: least, median, most", "least", "most"]
        columns += ["under every seed", "robust under every seed"]
        subject = f"{format_text(model)}, {format_norm(norm)}, {format_text(goal)}"
        caption = f"{subject}: robust accuracy over seeds"
        found.append(View(caption, columns, lines))
    return found
