"""Draw the figures of a run from its tables, and save them.

Every figure is readable in greyscale; the look is defined in `style`.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from bench.analysis.min_norm import Search
from bench.analysis.queries import QueryCurve
from bench.core.files import slug
from bench.reporting.formats.numbers import (
    DASH,
    format_factor,
    format_norm,
    format_text,
    is_missing,
    map_eps_texts,
)
from bench.reporting.plots import (
    class_heatmap,
    parameter_sweep,
    security_curves,
    transfer_matrix,
)
from bench.reporting.plots.certified import iter_certified_figures
from bench.reporting.plots.curves import plot_accuracy_curves, select_untargeted
from bench.reporting.plots.example_grids import (
    AttackedExample,
    plot_example_grid,
    plot_perturbation_grid,
)
from bench.reporting.plots.query_curves import iter_query_figures
from bench.reporting.plots.saving import save_figure
from bench.reporting.plots.smoothing import iter_smoothing_figures
from bench.reporting.plots.style import (
    OWN,
    PALETTE,
    STYLE,
    heatmap_size,
    pick_evenly,
    plot_message,
    shorten,
)

__all__ = [
    "AttackedExample",
    "Plot",
    "draw_figures",
    "plot_accuracy_curves",
    "plot_example_grid",
    "plot_perturbation_grid",
    "plot_success_heatmap",
    "plot_throughput",
]


class Plot(NamedTuple):
    """A saved figure."""

    name: str
    """File name without suffix."""
    caption: str
    png: Path
    svg: Path


# -------------------------------------------------------------------------------- success heat map


MAX_COLUMNS = 16
"""Columns of a heat map; a figure's memory grows with its size."""


def plot_success_heatmap(table: pd.DataFrame, norm: str) -> Figure:
    """Plot the attack success rate (%), a row per model and attack, a column per eps.

    Failed cells are cross-hatched, skipped cells hatched, both with a dash; a cell where no example
    could be attacked has only a dash; a combination that was not planned is blank. Of more than
    MAX_COLUMNS eps, MAX_COLUMNS are drawn, from the smallest to the largest, as the axis states.

    Args:
        table: The rows of table.csv.
        norm: The norm.

    Returns:
        The figure.
    """
    rows = table[table["norm"] == norm]
    every = sorted(set(rows["eps"].astype(float)))
    columns = pick_evenly(every, MAX_COLUMNS)
    rows = rows[rows["eps"].isin(columns)]
    order = list(dict.fromkeys(rows["model"]))
    keys = list(dict.fromkeys(zip(rows["model"], rows["attack"], strict=True)))
    keys.sort(key=lambda key: order.index(key[0]))  # stable: attacks stay in the suite's order
    values = np.full((len(keys), len(columns)), np.nan)
    marks: list[tuple[int, int, str]] = []
    for row in rows.to_dict("records"):
        i, j = keys.index((row["model"], row["attack"])), columns.index(float(row["eps"]))
        rate = row["attack_success_rate"]
        if row["status"] == "ok" and not is_missing(rate):
            values[i, j] = 100 * rate
        else:
            marks.append((i, j, str(row["status"])))
    with matplotlib.rc_context(STYLE):
        if not keys:
            return plot_message(f"{format_norm(norm)}: no cell was planned")
        models = [key[0] for key in keys]
        labels = [f"{shorten(model, 24)}: {shorten(attack)}" for model, attack in keys]
        figure = Figure(figsize=heatmap_size(len(columns), labels), layout="constrained")
        axes = figure.subplots()
        _shade(axes, values, marks)
        names = map_eps_texts(table)
        axes.set_yticks([i + 0.5 for i in range(len(keys))], labels, rotation=0)
        axes.set_xticks([j + 0.5 for j in range(len(columns))], [names[c] for c in columns])
        for i in range(1, len(keys)):
            if models[i] != models[i - 1]:
                axes.axhline(i, color="0.2", linewidth=1.2)
        some = f", {len(columns)} of {len(every)}" if len(columns) < len(every) else ""
        axes.set(xlabel=f"eps ({format_norm(norm)}{some})", ylabel="")
        present = {status for _, _, status in marks} & set(HATCHES)
        if present:
            patches = [Patch(fill=False, hatch=HATCHES[s], label=s) for s in sorted(present)]
            figure.legend(handles=patches, loc="outside lower right", ncols=2)
        return figure


HATCHES = {"failed": "xxxx", "skipped": "////"}


def _shade(axes: Axes, values: npt.NDArray[Any], marks: Sequence[tuple[int, int, str]]) -> None:
    text = np.array([["" if math.isnan(v) else f"{v:.1f}" for v in row] for row in values])
    sns.heatmap(
        values, ax=axes, vmin=0, vmax=100, cmap="Blues", annot=text, fmt="", linewidths=0.8,
        linecolor="white", annot_kws={"size": 8}, cbar_kws={"label": "attack success rate (%)"},
    )  # fmt: skip
    axes.grid(visible=False)
    for i, j, status in marks:
        hatch = HATCHES.get(status)
        axes.add_patch(Rectangle((j, i), 1, 1, fill=False, hatch=hatch, edgecolor="0.6"))
        axes.text(
            j + 0.5, i + 0.5, DASH, ha="center", va="center",
            bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none"},
        )  # fmt: skip


# ------------------------------------------------------------------------------------- throughput


def plot_throughput(table: pd.DataFrame) -> Figure:
    """Plot examples per second of each attack over all its eps, with the overhead factor.

    Args:
        table: The rows of table.csv.

    Returns:
        The figure.
    """
    speeds = _speeds(table)
    with matplotlib.rc_context(STYLE):
        if speeds.empty:
            return plot_message("No cell was timed")
        figure = Figure(figsize=(7.0, 1.3 + 0.3 * len(speeds)), layout="constrained")
        axes = figure.subplots()
        many = speeds["model"].nunique() > 1
        for place, row in enumerate(speeds.to_dict("records")):
            own = row["implementation"] == OWN
            look: dict[str, Any] = {"color": PALETTE[0], "markersize": 7, "linestyle": "none"}
            fill = look["color"] if own else "white"
            axes.plot([row["speed"]], [place], marker="o", markerfacecolor=fill, **look)
            if not is_missing(row["floor_ratio"]):
                axes.annotate(
                    format_factor(row["floor_ratio"]), (row["speed"], place), (8, 0),
                    textcoords="offset points", va="center", fontsize=8, color="0.3",
                )  # fmt: skip
        labels = [
            (f"{shorten(row.model, 24)}: " if many else "") + shorten(row.attack)
            for row in speeds.itertuples()
        ]
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        _speed_axis(axes, speeds["speed"])
        key = "filled: bench; hollow: a library; number: time over a bare loop of the same passes"
        figure.supxlabel(key, fontsize=8, color="0.3")
        return figure


def _speeds(table: pd.DataFrame) -> pd.DataFrame:
    """Sum examples, seconds and lower bounds of time per model and attack."""
    timed = table[(table["status"] == "ok") & (table["seconds"] > 0)].copy()
    timed = timed.dropna(subset=["examples_per_second"])
    timed["examples"] = timed["examples_per_second"] * timed["seconds"]
    timed["floor"] = timed["seconds"] / timed["floor_ratio"]
    keys = ["model", "attack", "implementation"]
    sums = timed.groupby(keys, sort=False)[["examples", "seconds", "floor"]]
    speeds = sums.sum(min_count=1).astype(float).reset_index()
    speeds["speed"] = speeds["examples"] / speeds["seconds"]
    speeds["floor_ratio"] = speeds["seconds"] / speeds["floor"]
    order = list(dict.fromkeys(table["model"]))
    speeds = speeds.sort_values("model", key=lambda names: names.map(order.index), kind="stable")
    return speeds[speeds["speed"] > 0].reset_index(drop=True)


def _speed_axis(axes: Axes, speeds: "pd.Series[float]") -> None:
    axes.set_xlabel("examples per second")
    if speeds.max() < 20 * speeds.min():
        axes.set_xlim(0, 1.15 * speeds.max())
        return
    axes.set_xscale("log")
    axes.set_xlabel("examples per second (logarithmic)")
    axes.set_xlim(speeds.min() / 1.8, speeds.max() * 2.5)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


# ------------------------------------------------------------------------------------------ saving


def draw_figures(
    table: pd.DataFrame,
    pictures: Sequence[AttackedExample],
    folder: Path,
    published: pd.DataFrame | None = None,
    searches: Sequence[Search] = (),
    certified: pd.DataFrame | None = None,
    classes: pd.DataFrame | None = None,
    query_curves: Sequence[QueryCurve] = (),
    queries: pd.DataFrame | None = None,
) -> list[Plot]:
    """Draw every figure of a run into folder/plots, as PNG and SVG.

    The same input gives the same bytes: no dates, no random ids, one bundled font.

    Args:
        table: The rows of table.csv.
        pictures: Attacked examples with their images.
        folder: The run's folder.
        published: The rows of published.csv, or None.
        searches: Distances found by each minimum-norm attack.
        certified: The rows of certified.csv, or None.
        classes: The rows of classes.csv, or None.
        query_curves: Cells of attacks that search by scores or labels.
        queries: The rows of queries.csv, or None.

    Returns:
        The saved figures.

    Raises:
        SuiteError: The folder cannot be written.
    """
    taken: set[str] = set()
    drawn: list[Plot] = []

    def keep(figure: Figure, name: str, caption: str) -> None:
        stem = _stem(name, taken)
        drawn.append(Plot(stem, caption, *save_figure(figure, folder / "plots" / stem)))

    for norm in dict.fromkeys(table["norm"]):
        title = format_norm(norm)
        for model in dict.fromkeys(table["model"]):
            if not select_untargeted(table, model, norm).empty:
                caption = (
                    f"Robust accuracy of {format_text(model)} against eps, {title}, 95 % bands."
                )
                figure = plot_accuracy_curves(table, model, norm, published)
                keep(figure, f"accuracy-{model}-{norm}", caption)
        caption = f"Attack success rate, {title}; the tables give the interval of each."
        keep(plot_success_heatmap(table, norm), f"success-{norm}", caption)
    others = [
        security_curves.iter_security_figures(searches),
        transfer_matrix.iter_transfer_figures(table),
        parameter_sweep.iter_sweep_figures(table),
    ]
    others += [] if certified is None else [iter_certified_figures(certified)]
    others += [] if classes is None else [class_heatmap.iter_class_figures(classes)]
    others += [] if queries is None else [iter_query_figures(query_curves, queries)]
    for name, caption, figure in itertools.chain(*others):
        keep(figure, name, caption)
    if not table.empty:
        keep(plot_throughput(table), "throughput", "Examples per second, all eps together.")
    # Values of a varied parameter look alike; their perturbations are shown below.
    single = [picture for picture in pictures if picture.attack not in _find_varied_attacks(table)]
    for model, attack in dict.fromkeys((picture.model, picture.attack) for picture in single):
        caption = f"{format_text(model)} under {format_text(attack)}: prediction before → after."
        keep(plot_example_grid(pictures, model, attack), f"examples-{model}-{attack}", caption)
    for model in dict.fromkeys(picture.model for picture in pictures):
        caption = (
            f"{format_text(model)}: perturbations at the largest eps; "
            "red is brighter, blue darker, each row has a scale of its own."
        )
        keep(plot_perturbation_grid(pictures, model), f"perturbations-{model}", caption)
    return drawn


def draw_smoothing_figures(curve: pd.DataFrame, folder: Path) -> list[Plot]:
    """Draw the figures of smoothed classifiers into folder/plots, as PNG and SVG.

    Args:
        curve: The rows of smoothing_curve.csv.
        folder: The run's folder.

    Returns:
        The saved figures.

    Raises:
        SuiteError: The folder cannot be written.
    """
    taken: set[str] = set()
    drawn = []
    for name, caption, figure in iter_smoothing_figures(curve):
        stem = _stem(name, taken)
        drawn.append(Plot(stem, caption, *save_figure(figure, folder / "plots" / stem)))
    return drawn


def _find_varied_attacks(table: pd.DataFrame) -> set[str]:
    return set(table[table["varied"].fillna("") != ""]["attack"]) if "varied" in table else set()


def _stem(name: str, taken: set[str]) -> str:
    """Derive a unique file name for a figure."""
    stem = slug(name)
    free = next(s for k in range(1, 10**6) if (s := stem if k == 1 else f"{stem}-{k}") not in taken)
    taken.add(free)
    return free
