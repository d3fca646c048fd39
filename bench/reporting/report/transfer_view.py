"""Tabulate transfer attacks and the sizes of successful perturbations."""

import pandas as pd

from bench.reporting.formats.numbers import (
    DASH,
    NORM_NAMES,
    format_count,
    format_interval,
    format_norm,
    format_number,
    format_percent,
    format_text,
    is_missing,
)
from bench.reporting.plots import transfer_matrix
from bench.reporting.report.views import Footnotes, Row, View, group_rows, to_rows


def tabulate_transfers(table: pd.DataFrame) -> list[View]:
    """Tabulate source by victim: error rate, and mean confidence of the fooled examples.

    Args:
        table: The rows of table.csv.

    Returns:
        One view per attack and eps.
    """
    found = []
    for matrix in transfer_matrix.build_matrices(table):
        notes, lines = Footnotes(), []
        for source in matrix.sources:
            cells = [matrix.cells.get((source, victim)) for victim in matrix.victims]
            lines.append([format_text(source), *(_format_transfer(row, notes) for row in cells)])
        caption = (
            f"{format_text(matrix.attack)}, {format_norm(matrix.norm)}, {format_text(matrix.goal)}"
            f", eps {format_text(matrix.eps_text)}: error rate "
            "(mean confidence of the fooled examples)"
        )
        columns = [
            "crafted on",
            *(f"evaluated on {format_text(victim)}" for victim in matrix.victims),
        ]
        found.append(View(caption, columns, lines, notes.texts))
    return found


def _format_transfer(row: Row | None, notes: Footnotes) -> str:
    if row is None:
        return ""
    share = transfer_matrix.compute_error_rate(row)
    if share is None:
        reason = f"{row['status']}: {format_text(row['reason'])}"
        return f"{DASH} {notes.mark(reason)}"
    ends = format_interval(1 - row["robust_high"], 1 - row["robust_low"])
    return f"{format_percent(share)} {ends} ({format_percent(row['mean_confidence_fooled'])})"


def tabulate_perturbation_sizes(table: pd.DataFrame) -> View | None:
    """Tabulate the mean norms of each attack's successful perturbations, at its largest eps.

    Args:
        table: The rows of table.csv.

    Returns:
        The view, or None if no attack succeeded.
    """
    lines = []
    keys = ("model", "attack", "norm", "goal")
    for (model, attack, norm, goal), rows in group_rows(to_rows(table), *keys).items():
        row = max(rows, key=lambda row: float(row["eps"]))
        if row["status"] != "ok" or is_missing(row.get("fooled")) or not row["fooled"]:
            continue
        means = [format_number(row[f"mean_{name}"]) for name in NORM_NAMES]
        entropy = format_number(row.get("mean_target_cross_entropy"))
        sure = [format_percent(row["mean_confidence_fooled"]), entropy]
        lines.append(
            [format_text(model), format_text(attack), format_norm(norm), format_text(goal),
             format_text(row["eps_text"]),
             format_count(row["fooled"], row["eligible"]), *means, *sure]
        )  # fmt: skip
    columns = ["model", "attack", "norm", "goal", "eps", "fooled"]
    columns += [*(f"mean {name}" for name in NORM_NAMES.values()), "mean confidence"]
    columns += ["mean cross-entropy of the target"]
    return View("", columns, lines) if lines else None
