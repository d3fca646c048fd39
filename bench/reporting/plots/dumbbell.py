"""Plot the robust accuracy of two runs as pairs of dots, one row per cell."""

from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.evaluation.metrics import SIGNIFICANCE_LEVEL
from bench.reporting.formats.numbers import format_text
from bench.reporting.plots.style import PALETTE, STYLE, plot_message, shorten

MAX_ROWS = 60
"""Rows of a figure; of more cells, the ones that differ most are shown."""
XLABEL = "robust accuracy (%); thin lines: 95 % intervals, of the first above, of the second below"
_WORSE, _BETTER, _SAME = PALETTE[3], PALETTE[0], (0.55, 0.55, 0.55)


def plot_dumbbell(table: pd.DataFrame, first: str, second: str) -> Figure:
    """Plot robust accuracy (%) in both runs.

    A thick line joins significantly different dots; a thin line through each dot is its interval.

    Args:
        table: The table of `compare_runs`.
        first: Legend entry of the first run.
        second: Legend entry of the second run.

    Returns:
        The figure.
    """
    with matplotlib.rc_context(STYLE):
        if table.empty:
            return plot_message("No cell was compared")
        gap = (table["first_robust"] - table["second_robust"]).abs() / table["n"]
        places = gap.sort_values(ascending=False, kind="stable").index[:MAX_ROWS].sort_values()
        rows = table.loc[places].to_dict("records")
        drawn = Figure(figsize=(7.5, 1.6 + 0.24 * len(rows)), layout="constrained")
        axes = drawn.subplots()
        for place, row in enumerate(rows):
            a, b = (100 * row[f"{side}_robust"] / row["n"] for side in ("first", "second"))
            beyond = row["p_corrected"] <= SIGNIFICANCE_LEVEL
            colour = (_WORSE if b < a else _BETTER) if beyond else _SAME
            for side, shift in (("first", -0.14), ("second", 0.14)):
                ends = [100 * row[f"{side}_{end}"] for end in ("low", "high")]
                axes.plot(ends, [place + shift] * 2, color=colour, linewidth=0.7)
            axes.plot([a, b], [place] * 2, color=colour, linewidth=2.6 if beyond else 1.2)
            axes.plot([a], [place], "o", color=colour, markerfacecolor="white", markersize=7.5)
            axes.plot([b], [place], "o", color=colour, markersize=4.5)
        many = table["model"].nunique() > 1
        axes.set_yticks(range(len(rows)), [_label(row, many) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set(xlim=(-2, 102), xlabel=XLABEL)
        if len(rows) < len(table):
            axes.set_title(f"The {len(rows)} of {len(table)} cells that differ most")
        drawn.legend(handles=_key(first, second), loc="outside lower center", ncols=2)
        return drawn


def _label(row: dict[Any, Any], many: bool) -> str:
    model = f"{shorten(row['model'], 24)}: " if many else ""
    eps = f", eps {format_text(row['eps_text'])}" if row["norm"] else ""
    return f"{model}{shorten(row['attack'])}{eps}"


def _key(first: str, second: str) -> list[Line2D]:
    plain: dict[str, Any] = {"color": "0.3", "marker": "o", "linestyle": "none"}
    return [
        Line2D([], [], markerfacecolor="white", markersize=7.5, label=shorten(first), **plain),
        Line2D(
            [], [], color=_WORSE, linewidth=2.6, label="the second robust on significantly fewer"
        ),
        Line2D([], [], markersize=4.5, label=shorten(second), **plain),
        Line2D(
            [], [], color=_BETTER, linewidth=2.6, label="the second robust on significantly more"
        ),
    ]
