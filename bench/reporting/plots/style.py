"""Define the look of all figures, readable in print and in greyscale."""

import io
from collections.abc import Sequence
from typing import Any, TypeVar

import seaborn as sns
from matplotlib.figure import Figure

from bench.reporting.formats.numbers import format_text

T = TypeVar("T")
OWN = "bench"
"""Value of the column `implementation` for the attacks of this package."""
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
    # Composing a grid's images resamples them at the finest resolution, which took two thirds of
    # the time of a report.
    "image.composite_image": False,
}
PALETTE: list[tuple[float, float, float]] = sns.color_palette("colorblind")


class DisplayedFigure(Figure):
    """A figure that a notebook shows as an image.

    Matplotlib tells notebooks how to show figures only where pyplot is imported; elsewhere they
    print its name.
    """

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def shorten(label: Any, width: int = 32) -> str:
    """Shorten a label to fit beside an axis, in its middle, as labels often differ at their ends.

    Args:
        label: The label; a space goes before a leading underscore, which a legend would hide.
        width: Maximum number of characters.

    Returns:
        The label.
    """
    text = format_text(label)
    text = f" {text}" if text.startswith("_") else text
    if len(text) <= width:
        return text
    tail = width // 3
    return f"{text[: width - 1 - tail].rstrip()}…{text[-tail:].lstrip()}"


def heatmap_size(columns: int, labels: Sequence[str]) -> tuple[float, float]:
    """Compute the size of a heat map with its row labels and its colour bar.

    Args:
        columns: Number of columns.
        labels: Label of each row.

    Returns:
        Width and height, inches.
    """
    beside = max(3.4, 1.7 + 0.08 * max(map(len, labels), default=0))
    return beside + 0.62 * columns, 1.5 + 0.3 * len(labels)


def pick_evenly(items: Sequence[T], most: int) -> list[T]:
    """Pick at most `most` items, evenly from the first to the last.

    Args:
        items: The items.
        most: Maximum number, at least 2.

    Returns:
        The picked items.

    Example:
        >>> pick_evenly("abcdefg", 3)
        ['a', 'd', 'g']
    """
    if len(items) <= most:
        return list(items)
    return [items[k * (len(items) - 1) // (most - 1)] for k in range(most)]


def plot_message(sentence: str) -> Figure:
    """Plot a sentence in place of an empty figure, so that a failure is visible.

    Args:
        sentence: Why there is nothing to draw.

    Returns:
        The figure.
    """
    figure = DisplayedFigure(figsize=(6.0, 1.2))
    figure.text(0.5, 0.5, sentence, ha="center", va="center", wrap=True)
    return figure
