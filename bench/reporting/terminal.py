"""The closing table of a run, for a terminal."""

import pandas as pd
from rich.console import Console
from rich.table import Table

from bench.analysis.results import RunResults
from bench.reporting.formats.numbers import DASH, format_percent, is_missing
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
    table = results.table
    for (model, norm, goal), group in table.groupby(["model", "norm", "goal"], sort=False):
        radii = group.drop_duplicates("eps").sort_values("eps")
        n = results.provenance["data"]["n"]
        worst = results.worst.query("model == @model and norm == @norm and goal == @goal")
        size = f"n = {n}{_reach([group, worst])}"
        screen.print(f"{model}: robust accuracy by eps, {norm}, {goal}, {size}", style="italic")
        shown = Table()
        shown.add_column("eps", overflow="fold")
        for text in radii["eps_text"]:
            shown.add_column(str(text), justify="right", no_wrap=True)
        lines = [*group.groupby("attack", sort=False)]
        if len(lines) > 1:
            lines.append((WORST_CASE, worst))
        for label, rows in lines:
            cells = _percents(rows, radii["eps"])
            shown.add_row(str(label), *cells, style="bold" if rows is worst else None)
        screen.print(shown)
        for sentence in accuracy_view.describe_shortfalls(worst, table):
            screen.print(sentence, soft_wrap=True)
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


def _reach(frames: list[pd.DataFrame]) -> str:
    """State the largest half-width of the intervals of a table, in percentage points."""
    reaches = [
        reach
        for rows in frames
        for sides in (("robust_high", "robust_accuracy"), ("robust_accuracy", "robust_low"))
        for reach in (rows[sides[0]] - rows[sides[1]]).dropna()
    ]
    return f", 95 % intervals within {100 * max(reaches):.1f} points" if reaches else ""


def _percents(rows: pd.DataFrame, radii: "pd.Series[float]") -> list[str]:
    by_eps = rows.set_index("eps")["robust_accuracy"]
    values = [by_eps.get(eps) for eps in radii]
    return [DASH if is_missing(value) else format_percent(value) for value in values]
