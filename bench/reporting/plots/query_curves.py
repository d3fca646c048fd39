"""Plot what attacks reach within a number of queries: robust accuracy, and the median distance.

Every curve is read from one run. A curve ends at the number of queries that the run made. Bands are
the 95 % intervals of each point: Wilson's of an accuracy, those of order statistics of a median.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from bench.analysis.queries import QueryCurve, accuracy_steps
from bench.reporting.formats.numbers import format_norm, format_text
from bench.reporting.plots.curves import MARKERS
from bench.reporting.plots.style import PALETTE, STYLE, shorten

DASHES = ("-", "--", "-.", ":")


def iter_query_figures(
    curves: Sequence[QueryCurve], frame: pd.DataFrame
) -> Iterator[tuple[str, str, Figure]]:
    """Yield the figures of each model, norm and goal.

    Args:
        curves: Cells whose attacks ask for scores or labels.
        frame: The rows of queries.csv.

    Yields:
        File name without suffix, caption and figure: robust accuracy at each eps (untargeted
        attacks), then the median distance of the searches, which is the same at every eps.
    """
    groups: dict[tuple[str, ...], list[QueryCurve]] = {}
    for curve in curves:
        if curve.status == "ok" and curve.cell.goal == "untargeted":
            groups.setdefault(curve.rivals, []).append(curve)
    for (model, norm, eps, _, _), rivals in groups.items():
        caption = (
            f"Robust accuracy of {format_text(model)} against the queries of the attack, "
            f"{format_norm(norm)}, eps {format_text(eps)}, each curve from one run, "
            "with its 95 % band."
        )
        yield f"queries-{model}-{norm}-{eps}", caption, plot_accuracy(rivals)
    for keys, rows in frame[frame["median_distance"].notna()].groupby(
        ["model", "norm", "goal", "target"], sort=False
    ):
        model, norm, goal, target = (str(key) for key in keys)
        caption = (
            f"Median distance of the adversarial examples of {format_text(model)} against the "
            f"queries of the attack, {format_norm(norm)}, with its 95 % interval; examples that "
            "are not fooled count as infinitely far."
        )
        name = "-".join(filter(None, ("distance-queries", model, norm, goal, target)))
        yield name, caption, plot_distances(rows)


def plot_accuracy(curves: Sequence[QueryCurve]) -> Figure:
    """Plot the robust accuracy (%) against the number of queries, a curve per attack.

    Args:
        curves: Cells of one model, norm, eps and goal.

    Returns:
        The figure.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _start()
        for place, curve in enumerate(curves):
            steps = accuracy_steps(curve.records)
            made = max(curve.made, steps.queries[-1], 1.0)
            x = np.append(np.maximum(steps.queries, 1.0), made)
            share, low, high = (
                100 * np.append(side, side[-1]) for side in (steps.share, steps.low, steps.high)
            )
            axes.plot(
                x, share, drawstyle="steps-post", label=shorten(curve.cell.attack),
                markevery=[-1], **_look(place),
            )  # fmt: skip
            axes.fill_between(
                x, low, high, step="post", color=PALETTE[place % len(PALETTE)], alpha=0.15,
                linewidth=0,
            )  # fmt: skip
        first = curves[0].cell
        axes.set(ylim=(0, 102), ylabel="robust accuracy (%)")
        axes.set_title(
            f"{shorten(first.model)}, {format_norm(first.norm)}, eps {first.eps_text}, "
            f"n = {len(curves[0].records)}"
        )
        figure.legend(loc="outside right upper", labelspacing=0.7)
        return figure


def plot_distances(rows: pd.DataFrame) -> Figure:
    """Plot the median distance against the number of queries, a curve per attack.

    Args:
        rows: Rows of queries.csv of one model, norm and goal.

    Returns:
        The figure.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _start()
        for place, (attack, every) in enumerate(rows.groupby("attack", sort=False)):
            found = every.drop_duplicates("budget")
            found = found[np.isfinite(found["median_distance"])]
            x = found["budget"].to_numpy(dtype=float)
            low, high = (
                found[f"median_distance_{end}"].to_numpy(dtype=float) for end in ("low", "high")
            )
            axes.plot(x, found["median_distance"], label=shorten(str(attack)), **_look(place))
            axes.fill_between(
                x, low, np.where(np.isfinite(high), high, np.nan),
                color=PALETTE[place % len(PALETTE)], alpha=0.15, linewidth=0,
            )  # fmt: skip
        first = rows.iloc[0]
        norm = format_norm(first["norm"])
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
        axes.set_ylabel(f"median distance ({norm})")
        axes.set_title(f"{shorten(first['model'])}, {norm}, {first['goal']}, n = {first['n']}")
        figure.legend(loc="outside right upper", labelspacing=0.7)
        return figure


def _start() -> tuple[Figure, Axes]:
    """Start a figure with queries on a logarithmic axis."""
    figure = Figure(figsize=(8.0, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("queries (logarithmic)")
    return figure, axes


def _look(place: int) -> dict[str, Any]:
    """Choose colour, dashes and marker of a curve, so that it can be read in greyscale."""
    return {
        "color": PALETTE[place % len(PALETTE)],
        "linestyle": DASHES[place % len(DASHES)],
        "marker": MARKERS[place % len(MARKERS)],
        "linewidth": 1.4,
        "markersize": 5.0,
    }
