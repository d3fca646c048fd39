"""Plot certified accuracy of smoothed classifiers against the certified radius."""

from collections.abc import Iterator

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bench.reporting.formats.numbers import format_norm, format_number, format_text
from bench.reporting.plots.curves import NORM_UNITS
from bench.reporting.plots.style import PALETTE, STYLE, shorten

LINES = ("-", "--", "-.", ":")


def iter_smoothing_figures(curve: pd.DataFrame) -> Iterator[tuple[str, str, Figure]]:
    """Yield the figure of each smoothed model.

    Args:
        curve: The rows of smoothing_curve.csv.

    Yields:
        File name without suffix, caption and figure.
    """
    for model, rows in curve.groupby("model", sort=False):
        caption = (
            f"{format_text(model)}, smoothed: certified accuracy against the L2 radius, 95 % bands."
        )
        yield f"smoothing-{model}", caption, plot_certified_radii(rows)


def plot_certified_radii(rows: pd.DataFrame) -> Figure:
    """Plot the certified accuracy (%) of one model's smoothed classifiers against the radius.

    Each curve is a step function: from a radius on, examples certified no further do not count.

    Args:
        rows: The rows of smoothing_curve.csv for the model.

    Returns:
        The figure.
    """
    first = rows.iloc[0]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 4.0), layout="constrained")
        axes = figure.subplots()
        furthest = float(rows["radius"].max())
        end = 1.05 * furthest if furthest > 0 else 1.0
        for place, (sigma, own) in enumerate(rows.groupby("sigma")):
            own = own.sort_values("radius")
            radii = np.append(own["radius"].to_numpy(dtype=float), end)
            share, low, high = (
                100 * np.append(own[name].to_numpy(dtype=float), own[name].iloc[-1])
                for name in ("certified_accuracy", "certified_low", "certified_high")
            )
            colour = PALETTE[place % len(PALETTE)]
            axes.step(
                radii, share, where="post", color=colour, linestyle=LINES[place % len(LINES)],
                linewidth=1.4, label=f"sigma {format_number(sigma)}", clip_on=False,
            )  # fmt: skip
            axes.fill_between(radii, low, high, step="post", color=colour, alpha=0.15, linewidth=0)
        norm = str(first["norm"])
        axes.set(ylim=(0, 102), ylabel="certified accuracy (%)")
        axes.set_xlim(0, end)
        axes.set_xlabel(f"radius ({format_norm(norm)}: {NORM_UNITS.get(norm, norm)})")
        axes.set_title(f"{shorten(first['model'])}, smoothed, n = {first['n']}")
        figure.legend(loc="outside right upper", labelspacing=0.7)
        return figure
