"""How every figure of bench looks: one style, in one place, readable in print and in grey."""

from collections.abc import Sequence
from typing import Any, TypeVar

import seaborn as sns
from matplotlib.figure import Figure

from bench.reporting.formats.numbers import format_text

T = TypeVar("T")
OWN = "bench"
"""What the column `implementation` says of an attack that is bench's own."""
STYLE: dict[Any, Any] = {
    **sns.axes_style("whitegrid"),
    "font.family": ["DejaVu Sans"],  # ships with matplotlib: the same bytes on every machine
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.edgecolor": "0.4",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "0.9",
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "hatch.color": "0.6",
    "hatch.linewidth": 0.6,
    "text.parse_math": False,  # a "$" in a label is a "$"
    "savefig.dpi": 150,
    "svg.hashsalt": "bench",  # ids are otherwise random, and the same table gives other bytes
    "svg.fonttype": "path",
    # A grid's small images stay small: joined, they are resampled at the page's finest resolution,
    # which took two thirds of the time of a report.
    "image.composite_image": False,
}
PALETTE: list[tuple[float, float, float]] = sns.color_palette("colorblind")


def shorten(label: Any, width: int = 32) -> str:
    """A label that fits beside an axis; a leading underscore would hide it from a legend."""
    text = format_text(label)
    text = f" {text}" if text.startswith("_") else text
    return text if len(text) <= width else f"{text[: width - 1]}…"


def pick_evenly(items: Sequence[T], most: int) -> list[T]:
    """At most so many of the items, from the first to the last.

    >>> evenly("abcdefg", 3)
    ['a', 'd', 'g']
    """
    if len(items) <= most:
        return list(items)
    return [items[k * (len(items) - 1) // (most - 1)] for k in range(most)]


def plot_message(sentence: str) -> Figure:
    """A figure that says why there is none: a plot left out would hide the failure."""
    figure = Figure(figsize=(6.0, 1.2))
    figure.text(0.5, 0.5, sentence, ha="center", va="center", wrap=True)
    return figure
