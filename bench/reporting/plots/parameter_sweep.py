"""Plot success rate and perturbation size against the value of a varied parameter."""

from collections.abc import Iterator

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from bench.reporting.formats.numbers import NORM_NAMES, format_norm, format_text, is_missing
from bench.reporting.plots.curves import MARKERS
from bench.reporting.plots.style import PALETTE, STYLE, shorten

SIZES = ("mean_l1", "mean_l2", "mean_linf")


def iter_sweep_figures(table: pd.DataFrame) -> Iterator[tuple[str, str, Figure]]:
    """Yield the figure of each parameter varied on each model.

    Args:
        table: The rows of table.csv.

    Yields:
        File name without suffix, caption and figure.
    """
    if "varied" not in table:  # a table of an older version
        return
    rows = table[(table["varied"].fillna("") != "") & (table["eps"] > 0)]
    for (model, varied, norm, goal), group in rows.groupby(
        ["model", "varied", "norm", "goal"], sort=False
    ):
        title = f"{shorten(model)}, {format_norm(norm)}, {goal}"
        caption = (
            f"{format_text(model)}: success, and size of the successful perturbations, against "
            f"{format_text(varied)} at the largest eps, 95 % intervals."
        )
        yield f"{varied}-{model}-{norm}-{goal}", caption, plot_parameter_sweep(group, title)


def plot_parameter_sweep(rows: pd.DataFrame, title: str) -> Figure:
    """Plot success rate (%) and mean norms against the varied parameter, a curve per attack.

    Each attack is drawn at its largest eps. A mean norm is over the successful examples, and
    missing if there is none.

    Args:
        rows: The rows of table.csv for one model, parameter, norm and goal.
        title: Title of the figure.

    Returns:
        The figure.
    """
    varied = str(rows["varied"].iloc[0])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 2.9), layout="constrained")
        success, *sizes = figure.subplots(1, 1 + len(SIZES))
        crafted = rows["source"].fillna("").map(lambda source: f" from {source}" if source else "")
        seeds = rows["seed"].map(lambda seed: "" if is_missing(seed) else f", seed {seed}")
        lines = rows["family"] + crafted + seeds
        for place, (label, group) in enumerate(rows.groupby(lines, sort=False)):
            cells = group[group["eps"] == group["eps"].max()].sort_values("value")
            look = {
                "color": PALETTE[place % len(PALETTE)],
                "marker": MARKERS[place % len(MARKERS)],
                "ms": 4,
            }
            x = cells["value"].astype(float)
            shares = cells[["attack_success_rate", "success_low", "success_high"]].astype(float)
            rate, low, high = (100 * shares[name] for name in shares)
            reach = np.clip([rate - low, high - rate], 0, None)
            success.errorbar(x, rate, yerr=reach, capsize=2, lw=1.2, label=shorten(label), **look)
            for axes, name in zip(sizes, SIZES, strict=True):
                axes.plot(x, cells[name].astype(float), lw=1.2, **look)
        success.set(ylim=(-3, 103), ylabel="attack success rate (%)")
        for axes, name in zip(sizes, SIZES, strict=True):
            axes.set_ylabel(f"mean {NORM_NAMES[name.removeprefix('mean_')]} norm")
            axes.set_ylim(0, 1.12 * max(axes.get_ylim()[1], 1e-9))
        for axes in (success, *sizes):
            _scale(axes, rows["value"].astype(float))
            axes.set_xlabel(varied)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        if lines.nunique() > 1:
            figure.legend(loc="outside right upper")
        return figure


def _scale(axes: Axes, values: "pd.Series[float]") -> None:
    """Use a logarithmic axis if values span more than a decade; 0 then has its own position."""
    positive = values[values > 0]
    if len(positive) and positive.max() > 10 * positive.min():
        least = float(positive.min())
        axes.set_xscale("symlog", linthresh=least)
        axes.set_xlim(-0.3 * least if (values == 0).any() else least / 1.5, 1.5 * positive.max())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
