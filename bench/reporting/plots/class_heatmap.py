"""Plot the robust accuracy of each class against eps, as a heat map per model and norm."""

import math
from collections.abc import Iterator

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from bench.analysis.classes import select_shown_classes
from bench.reporting.formats.numbers import format_norm, format_text
from bench.reporting.plots.style import STYLE, heatmap_size, pick_evenly, shorten
from bench.suite.labels import WORST_CASE

MAX_COLUMNS = 16
"""Columns of a heat map; a figure's memory grows with its size."""


def iter_class_figures(classes: pd.DataFrame) -> Iterator[tuple[str, str, Figure]]:
    """Plot a heat map for each model and norm in which several classes are attacked.

    Args:
        classes: The rows of classes.csv.

    Yields:
        Name, caption and figure.
    """
    worst = classes[(classes["attack"] == WORST_CASE) & (classes["goal"] == "untargeted")]
    for (model, norm), rows in worst.groupby(["model", "norm"], sort=False):
        able = rows[(rows["eps"] > 0) & (rows["eligible"] > 0)]
        if able["class"].nunique() < 2:
            continue
        caption = (
            f"Robust accuracy of {format_text(model)} by class under the worst case, "
            f"{format_norm(norm)}; the tables give the interval of each."
        )
        yield f"classes-{model}-{norm}", caption, plot_class_heatmap(rows)


def plot_class_heatmap(rows: pd.DataFrame) -> Figure:
    """Plot the robust accuracy (%) of each class at each eps.

    A class of which no example could be attacked is hatched. Of many classes the ones with the
    lowest robust accuracy are drawn, of many eps MAX_COLUMNS.

    Args:
        rows: Rows of classes.csv of one model and norm under the worst case, untargeted.

    Returns:
        The figure.
    """
    shown, every = select_shown_classes(rows), rows["class"].nunique()
    radii = sorted({float(eps) for eps in rows["eps"]})
    columns = pick_evenly(radii, MAX_COLUMNS)
    texts = dict(zip(rows["eps"].astype(float), rows["eps_text"].astype(str), strict=True))
    values = np.full((len(shown), len(columns)), np.nan)
    labels: dict[int, str] = {}
    idle: set[int] = set()
    for row in rows[rows["class"].isin(shown)].to_dict("records"):
        i = shown.index(int(row["class"]))
        labels[i] = f"{shorten(row['class_name'], 24)} (n = {row['n']})"
        if not row["eligible"]:
            idle.add(i)
        if row["eps"] in columns:
            values[i, columns.index(float(row["eps"]))] = 100 * row["robust_accuracy"]
    with matplotlib.rc_context(STYLE):
        names = [labels[i] for i in range(len(shown))]
        figure = Figure(figsize=heatmap_size(len(columns), names), layout="constrained")
        axes = figure.subplots()
        notes = np.array([["" if math.isnan(v) else f"{v:.1f}" for v in line] for line in values])
        sns.heatmap(
            values, ax=axes, vmin=0, vmax=100, cmap="Blues", annot=notes, fmt="", linewidths=0.8,
            linecolor="white", annot_kws={"size": 8}, cbar_kws={"label": "robust accuracy (%)"},
        )  # fmt: skip
        axes.grid(visible=False)
        for i in idle:
            axes.add_patch(
                Rectangle((0, i), len(columns), 1, fill=False, hatch="////", edgecolor="0.6")
            )
        axes.set_yticks([i + 0.5 for i in range(len(shown))], names, rotation=0)
        axes.set_xticks([j + 0.5 for j in range(len(columns))], [texts[c] for c in columns])
        some = f", {len(columns)} of {len(radii)}" if len(columns) < len(radii) else ""
        norm = format_norm(rows["norm"].iloc[0])
        which = f"the lowest {len(shown)} of {every} classes" if len(shown) < every else "class"
        axes.set(xlabel=f"eps ({norm}{some})", ylabel=which)
        if idle:
            patch = Patch(fill=False, hatch="////", label="no example could be attacked")
            figure.legend(handles=[patch], loc="outside lower right")
        return figure
