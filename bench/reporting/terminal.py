"""The closing table of a run, for a terminal."""

from typing import Any

import pandas as pd
from rich.console import Console

from bench.analysis.results import RunResults
from bench.reporting.formats.numbers import DASH, format_percent, is_missing
from bench.reporting.formats.terminal_table import Column, print_table
from bench.reporting.report import (
    accuracy_view,
    audit_view,
    certified_view,
    class_view,
    crosscheck_view,
    pairwise_view,
    rejection_view,
    smoothing_view,
    union_view,
)
from bench.suite.labels import WORST_CASE


def print_summary(results: RunResults, screen: Console) -> None:
    """Print robust accuracy by attack and eps, the worst case and what the checks found.

    Args:
        results: The results of a run.
        screen: The console to print on.
    """
    print_accuracies(results.table, screen, results.worst)
    for sentence in union_view.describe_unions(results.unions):
        screen.print(sentence, soft_wrap=True)
    for sentence in rejection_view.describe_detectors(
        results.rejections, results.provenance["models"]
    ):
        screen.print(sentence, soft_wrap=True)
    for sentence in class_view.describe_worst_classes(results.classes):
        screen.print(sentence, soft_wrap=True)
    verdicts = results.crosschecks["verdict"].value_counts()
    if len(verdicts):
        counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
        screen.print(f"cross-checks: {counts}")
    for sentence in crosscheck_view.describe_missing(results.missing_crosschecks):
        screen.print(f"cross-checks: {sentence}", soft_wrap=True)
    if len(results.comparisons):
        screen.print(pairwise_view.summarize_comparisons(results.comparisons))
    for model in results.audit.models:
        screen.print(f"audit of {model}: {audit_view.summarize_audit(results.audit, model)}")
    for sentence in certified_view.describe_bounds(results.certified, results.worst):
        screen.print(sentence, soft_wrap=True)
    for sentence in smoothing_view.describe_smoothing(results.smoothed.table):
        screen.print(sentence, soft_wrap=True)
    for table in (results.certified.table, results.smoothed.table):
        for sentence in certified_view.describe_uncertified(table):
            screen.print(sentence, soft_wrap=True)
    if len(results.violations):
        screen.print(f"violations: {len(results.violations)}, see the report", style="bold red")


def print_accuracies(table: pd.DataFrame, screen: Console, worst: pd.DataFrame | None) -> None:
    """Print robust accuracy by attack and eps, a table per model, norm and goal.

    Args:
        table: The rows of table.csv.
        screen: The console to print on.
        worst: The rows of worst.csv, printed below those of several attacks.
    """
    for (model, norm, goal), group in table.groupby(["model", "norm", "goal"], sort=False):
        radii = group.drop_duplicates("eps").sort_values("eps")
        joint = None if worst is None else _select(worst, model, norm, goal)
        lines = [*group.groupby("attack", sort=False)]
        rows = [[str(label), *_percents(cells, radii["eps"])] for label, cells in lines]
        if len(lines) > 1 and joint is not None:
            rows.append([WORST_CASE, *_percents(joint, radii["eps"])])
        sizes = (
            f"{_count(group)}{_clean(group)}{_reach([group, *([] if joint is None else [joint])])}"
        )
        screen.print(f"{model}: robust accuracy by eps, {norm}, {goal}{sizes}", style="italic")
        print_table(
            screen,
            [Column("eps", "name"), *(Column(str(text), "number") for text in radii["eps_text"])],
            rows,
            bold=range(len(lines), len(rows)),
        )
        shortfalls = [] if joint is None else accuracy_view.describe_shortfalls(joint, table)
        skipped = accuracy_view.list_certified(group)
        for sentence in [*accuracy_view.describe_failures(group), *shortfalls, *skipped]:
            screen.print(sentence, soft_wrap=True)


def _select(table: pd.DataFrame, model: Any, norm: Any, goal: Any) -> pd.DataFrame:
    return table.query("model == @model and norm == @norm and goal == @goal")


def _count(rows: pd.DataFrame) -> str:
    """State the number of examples, if a cell has some."""
    known = rows["n"].dropna()
    return "" if known.empty else f", n = {int(known.iloc[0])}"


def _clean(rows: pd.DataFrame) -> str:
    """State the clean accuracy, if a cell knows it."""
    known = rows[rows["status"] == "ok"]
    share = None if known.empty else known["clean_accuracy"].iloc[0]
    return "" if is_missing(share) else f", clean accuracy {format_percent(share)}"


def _reach(frames: list[pd.DataFrame]) -> str:
    """State the largest half-width of the intervals of a table, in percentage points."""
    reaches = [
        reach
        for rows in frames
        for sides in (("robust_high", "robust_accuracy"), ("robust_accuracy", "robust_low"))
        for reach in (rows[sides[0]] - rows[sides[1]]).dropna()
    ]
    return f", 95 % intervals up to ± {100 * max(reaches):.1f} points" if reaches else ""


def _percents(rows: pd.DataFrame, radii: "pd.Series[float]") -> list[str]:
    """Format the robust accuracy at each eps; nothing where the suite has no such cell."""
    by_eps = {row["eps"]: row for row in rows.to_dict("records")}
    return [_percent(by_eps[eps]) if eps in by_eps else "" for eps in radii]


def _percent(row: dict[Any, Any]) -> str:
    """Format the robust accuracy of a cell: a dash if it failed, its status if it did not run."""
    if not is_missing(row["robust_accuracy"]):
        return format_percent(row["robust_accuracy"])
    status = str(row.get("status", ""))
    return DASH if status in ("failed", "") else status
