"""Tabulate robust accuracy by class: the worst class at each eps, and every class."""

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

from bench.analysis import classes
from bench.evaluation import metrics
from bench.reporting.formats.numbers import (
    DASH,
    format_count,
    format_eps,
    format_norm,
    format_percent,
    format_rate,
    format_text,
)
from bench.reporting.report.views import Footnotes, Row, View, group_rows, pivot_by_eps, to_rows
from bench.suite.labels import WORST_CASE


class ClassViews(NamedTuple):
    """The section on classes of a report."""

    worst: View
    """The worst class of each model at each eps above 0."""
    details: list[View]
    """Robust accuracy of the classes at each eps, a view per model, norm and goal."""


def build_class_views(frame: pd.DataFrame, eps_texts: Mapping[float, str]) -> ClassViews | None:
    """Build the section on classes.

    Args:
        frame: The rows of classes.csv.
        eps_texts: Text of each eps, from `map_eps_texts`.

    Returns:
        The views, or None if nothing was attacked or the examples are of one class.
    """
    worst = select_worst_classes(frame)
    if worst.empty:
        return None
    joined = frame[frame["attack"] == WORST_CASE]
    details = [
        _tabulate_classes(rows, eps_texts)
        for _, rows in joined.groupby(["model", "norm", "goal"], sort=False)
        if (rows["eps"] > 0).any()
    ]
    return ClassViews(tabulate_worst_classes(worst, eps_texts), details)


def select_worst_classes(frame: pd.DataFrame) -> pd.DataFrame:
    """Find the worst class of each model at each eps above 0, where classes can be compared.

    Args:
        frame: The rows of classes.csv.

    Returns:
        The rows of `find_worst_classes` with at least two classes.
    """
    worst = classes.find_worst_classes(frame)
    return worst[(worst["eps"] > 0) & (worst["classes"] - worst["unattacked"] > 1)]


def tabulate_worst_classes(worst: pd.DataFrame, eps_texts: Mapping[float, str]) -> View:
    """Tabulate the worst class at each eps, with its interval and the spread between classes.

    Args:
        worst: That of `select_worst_classes`.
        eps_texts: Text of each eps, from `map_eps_texts`.

    Returns:
        The view.
    """
    notes = Footnotes()
    lines = [
        [format_text(row["model"]), format_norm(row["norm"]), format_text(row["goal"]),
         format_eps(row["eps"], eps_texts), *_compare(row, notes), f"{100 * row['spread']:.1f} pp"]
        for row in to_rows(worst)
    ]  # fmt: skip
    columns = ["model", "norm", "goal", "eps", "worst class", "robust accuracy", "robust"]
    columns += ["mostly predicted as", "best class", "spread"]
    return View("", columns, lines, notes.texts)


def _compare(row: Row, notes: Footnotes) -> list[str]:
    """Format the worst and the best class, with what qualifies the worst in a footnote."""
    reasons = []
    if row["unattacked"]:
        reasons.append(_describe_left_out(row))
    if row["spread"] == 0:
        reasons.insert(0, f"all classes alike, {format_percent(row['robust_accuracy'])}")
        return [f"{DASH} {notes.mark('; '.join(reasons))}", *[DASH] * 4]
    if row["ties"]:
        reasons.insert(0, f"as low as {_count_classes(row['ties'], 'other ')}")
    name = format_text(row["worst_class_name"])
    best = metrics.rate(int(row["best_robust_correct"]), int(row["best_n"]))
    return [
        f"{name} {notes.mark('; '.join(reasons))}" if reasons else name,
        format_rate(row["robust_correct"], row["n"], row["robust_low"], row["robust_high"]),
        format_count(row["robust_correct"], row["n"]),
        _format_wrong(row),
        f"{format_text(row['best_class_name'])}: {format_rate(*best[:2], best.low, best.high)}",
    ]


def _describe_left_out(row: Row) -> str:
    return f"{_count_classes(row['unattacked'])} left out, of which no example could be attacked"


def _count_classes(k: int, which: str = "") -> str:
    return f"{k} {which}class" if k == 1 else f"{k} {which}classes"


def _format_wrong(row: Row) -> str:
    name = format_text(row["wrong_class_name"])
    return name if name == DASH else f"{name} ({int(row['wrong_count'])})"


def _tabulate_classes(rows: pd.DataFrame, eps_texts: Mapping[float, str]) -> View:
    """Tabulate classes by eps; of many classes the lowest."""
    shown = classes.select_shown_classes(rows)
    first = rows.iloc[0]
    place = [format_text(first["model"]), format_norm(first["norm"]), format_text(first["goal"])]
    every = rows["class"].nunique()
    which = f", the lowest {len(shown)} of {every} classes" if len(shown) < every else ""
    by_class = group_rows(to_rows(rows), "class")
    lines = [row for index in shown for row in by_class[(index,)]]

    def cell(row: Row, notes: Footnotes) -> str:
        text = format_rate(row["robust_correct"], row["n"], row["robust_low"], row["robust_high"])
        if row["eligible"]:
            return text
        return f"{text} {notes.mark('no example could be attacked')}"

    caption = f"{', '.join(place)}: robust accuracy by class under the worst case{which}"
    is_named = any(str(row["class"]) != row["class_name"] for row in lines)
    keys = ("class", "class_name", "n") if is_named else ("class", "n")
    view = pivot_by_eps(caption, lines, keys, eps_texts, cell)
    return view._replace(columns=[name.removeprefix("class_") for name in view.columns])


def describe_worst_classes(frame: pd.DataFrame) -> list[str]:
    """Name the worst class of each model in each norm in a sentence.

    The eps is the largest at which classes differ; where none differ, there is no sentence.

    Args:
        frame: The rows of classes.csv.

    Returns:
        At most one sentence per model, norm and goal.
    """
    rows = to_rows(select_worst_classes(frame))
    found = []
    for own in group_rows(rows, "model", "norm", "goal").values():
        differing = [row for row in own if row["spread"] > 0]
        if differing:
            found.append(_sentence(max(differing, key=lambda row: float(row["eps"]))))
    return found


def _sentence(row: Row) -> str:
    rate = format_rate(row["robust_correct"], row["n"], row["robust_low"], row["robust_high"])
    goal = "" if row["goal"] == "untargeted" else f", {row['goal']}"
    others = f" and {_count_classes(row['ties'], 'other ')}" if row["ties"] else ""
    where = f"{format_text(row['model'])}, {row['norm']} {row['eps_text']}{goal}"
    return (
        f"{where}: worst class {format_text(row['worst_class_name'])}{others}, robust accuracy "
        f"{rate}, {format_count(row['robust_correct'], row['n'])}; spread between classes "
        f"{100 * row['spread']:.1f} pp"
    ) + (f"; {_describe_left_out(row)}" if row["unattacked"] else "")
