"""Plot certified bounds: robust accuracy lies between certified accuracy and that under attack.

The band between both is hatched, so that it is visible in print; the curve below it has filled
markers, the curve above it hollow ones. Where both meet, the robust accuracy is known.
"""

from collections.abc import Iterator

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bench.analysis.certified import METHODS
from bench.reporting.formats.numbers import format_norm, format_text
from bench.reporting.plots.curves import NORM_UNITS, select_ticks
from bench.reporting.plots.style import PALETTE, STYLE, shorten

METHOD_STYLES = {"ibp": ("s", "--"), "crown": ("o", "-")}
"""Marker and line style of each method."""


def iter_certified_figures(table: pd.DataFrame) -> Iterator[tuple[str, str, Figure]]:
    """Yield the figure of each certified model and norm.

    Args:
        table: The rows of certified.csv.

    Yields:
        File name without suffix, caption and figure.
    """
    done = table[table["status"] == "ok"]
    for (model, norm), rows in done.groupby(["model", "norm"], sort=False):
        caption = (
            f"{format_text(model)}: certified accuracy, and robust accuracy under every attack; "
            "the true robust accuracy lies in the band between."
        )
        name = f"bracket-{model}" if norm == "linf" else f"bracket-{model}-{norm}"
        yield name, caption, plot_certified_bounds(rows)


def plot_certified_bounds(rows: pd.DataFrame) -> Figure:
    """Plot certified and worst-case robust accuracy (%) of one model against eps in one norm.

    At eps 0 both are the clean accuracy. Error bars are 95 % Wilson intervals of the certified
    accuracy.

    Args:
        rows: The rows of certified.csv for the model.

    Returns:
        The figure.
    """
    first = rows.iloc[0]
    clean = 100 * first["clean_correct"] / first["n"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 4.0), layout="constrained")
        axes = figure.subplots()
        found = [(str(name), own.sort_values("eps")) for name, own in rows.groupby("method")]
        found.sort(key=lambda pair: -int(pair[1]["certified_correct"].sum()))
        best = found[0][1]
        eps = np.append(0.0, best["eps"].to_numpy(dtype=float))
        left = best["attacked_robust_correct"].astype(float).to_numpy()
        high = np.append(clean, 100 * left / best["n"].to_numpy(dtype=float))
        low = np.append(clean, 100 * best["certified_accuracy"].to_numpy(dtype=float))
        if not np.isnan(high).any():
            axes.plot(
                eps, high, color=PALETTE[3], marker="D", markerfacecolor="white", linewidth=1.4,
                markersize=5, label="robust under all attacks", clip_on=False, zorder=4,
            )  # fmt: skip
            axes.fill_between(
                eps, low, high, facecolor=(*PALETTE[1], 0.2), edgecolor="0.6", hatch="///",
                linewidth=0, label="undecided",
            )  # fmt: skip
        for place, (method, own) in enumerate(found):
            marker, line = METHOD_STYLES.get(method, ("o", "-"))
            accuracy = 100 * own["certified_accuracy"].to_numpy(dtype=float)
            gaps = (
                accuracy - 100 * own["certified_low"].to_numpy(dtype=float),
                100 * own["certified_high"].to_numpy(dtype=float) - accuracy,
            )
            # Lists: of an array of one number, older versions of matplotlib warn.
            spread = [np.clip(gap, 0, None).tolist() for gap in gaps]
            colour = PALETTE[0] if place == 0 else "0.45"
            axes.errorbar(
                own["eps"].astype(float), accuracy, yerr=spread, fmt="none", ecolor=colour,
                elinewidth=0.8, capsize=2,
            )  # fmt: skip
            axes.plot(
                eps, np.append(clean, accuracy), color=colour, marker=marker, linestyle=line,
                linewidth=1.4 if place == 0 else 1.0, markersize=4.5, clip_on=False,
                zorder=3 - place, label=f"certified, {METHODS.get(method, method)}",
            )  # fmt: skip
        norm = str(first["norm"])
        axes.set(ylim=(0, 102), ylabel="share of examples (%)")
        axes.set_xlim(left=0)
        texts = dict(zip(best["eps"].astype(float), best["eps_text"], strict=True))
        marked = select_ticks([*texts])
        axes.set_xticks(marked, [texts[tick] for tick in marked])
        axes.set_xlabel(f"eps ({format_norm(norm)}: {NORM_UNITS.get(norm, norm)})")
        axes.set_title(f"{shorten(first['model'])}, {format_norm(norm)}, n = {first['n']}")
        figure.legend(loc="outside right upper", labelspacing=0.7)
        return figure
