"""Comparisons → views: which differences are beyond chance, and what several seeds leave."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from bench.evaluation import metrics
from bench.reporting.formats import absent, count, many, number, rate, words
from bench.reporting.report.views import (
    Footnotes,
    Row,
    View,
    eps_name,
    groups,
    norm_name,
    pivot,
    records,
)

_PAIR = ("compared", "model", "attack", "norm", "goal", "target", "first", "second")


def summary(frame: pd.DataFrame) -> str:
    """How many comparisons there are, and how many of them show a difference."""
    if not len(frame):
        told = "it takes two attacks on one model, or two models under one attack"
        return f"Nothing was compared: {told}."
    differ = int((frame["p_corrected"] <= metrics.SIGNIFICANCE_LEVEL).sum())
    return (
        f"{many(len(frame), 'comparison')}: {differ} with a difference beyond chance (5 %, "
        f"corrected for all {len(frame)}), {len(frame) - differ} without."
    )


def differences(frame: pd.DataFrame, names: Mapping[float, str]) -> list[View]:
    """Pair by pair and eps by eps, on how many examples one side alone has what is compared.

    A pair without a difference beyond chance at any eps has no line.
    """
    rows = records(frame)
    beyond = groups(_significant(rows), *_PAIR)

    def cell(row: Row, notes: Footnotes) -> str:
        plain = row["p_corrected"] > metrics.SIGNIFICANCE_LEVEL
        return "n.s." if plain else f"{row['only_first']} : {row['only_second']}"

    found = []
    shown = [row for row in rows if _key(row) in beyond]
    for (what, model, norm, goal, target), lines in groups(
        shown, "compared", "model", "norm", "goal", "target"
    ).items():
        about = [*([] if model is None else [words(model)]), norm_name(norm), words(goal)]
        about += [] if target is None else [words(target)]
        told = "robust on" if what == "models" else "broken by"
        caption = f"{', '.join(about)}: examples {told} the first alone : the second alone"
        keys = ("attack", "first", "second") if what == "models" else ("first", "second")
        found.append(pivot(caption, lines, keys, names, cell))
    return found


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(None if absent(row[key]) else row[key] for key in _PAIR)


def _significant(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["p_corrected"] <= metrics.SIGNIFICANCE_LEVEL]


def sentences(frame: pd.DataFrame, names: Mapping[float, str]) -> View | None:
    """Every difference beyond chance, in a sentence."""
    lines = [
        [words(row["attack"] if row["compared"] == "models" else row["model"]),
         norm_name(row["norm"]), words(row["goal"]), eps_name(row["eps"], names), str(row["n"]),
         words(row["sentence"])]
        for row in _significant(records(frame))
    ]  # fmt: skip
    columns = ["on or under", "norm", "goal", "eps", "n", "difference"]
    return View("", columns, lines) if lines else None


def seeds(frame: pd.DataFrame, names: Mapping[float, str]) -> list[View]:
    """Per model, norm and goal: how many examples stay robust, seed by seed and under all."""
    found = []
    for (model, norm, goal), rows in groups(records(frame), "model", "norm", "goal").items():
        lines = [
            [words(row["attack"]), eps_name(row["eps"], names), words(row["seeds"]),
             f"{row['least']}, {number(row['median'], 9)}, {row['most']} of {row['n']}",
             *(rate(row[side], row["n"], row[f"{side}_low"], row[f"{side}_high"])
               for side in ("least", "most", "union")),
             count(row["union"], row["n"])]
            for row in rows
        ]  # fmt: skip
        columns = ["attack", "eps", "seeds", "robust: least, median, most", "least", "most"]
        columns += ["under every seed", "robust under every seed"]
        caption = f"{words(model)}, {norm_name(norm)}, {words(goal)}: robust accuracy over seeds"
        found.append(View(caption, columns, lines))
    return found
