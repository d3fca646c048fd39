"""Plot attacked examples and perturbations as grids of images."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bench.reporting.formats.numbers import format_text
from bench.reporting.plots.style import PALETTE, STYLE, pick_evenly, plot_message, shorten

MAX_ROWS = 10
"""Rows of an example grid; a figure's memory grows with its height."""


class AttackedExample(NamedTuple):
    """One attacked example with its predictions and images."""

    model: str
    attack: str
    norm: str
    eps: float
    eps_text: str
    example: int
    label: str
    before: str
    """Name of the class predicted for the clean image."""
    after: str
    """Name of the class predicted for the adversarial image."""
    clean: npt.NDArray[Any]
    """(h, w) or (h, w, c), in [0, 1]."""
    adversarial: npt.NDArray[Any]
    """As `clean`."""
    fooled: bool
    n_fooled: int
    """Examples of the cell that the attack fooled; as the next."""
    n_attacked: int


def plot_example_grid(pictures: Sequence[AttackedExample], model: str, attack: str) -> Figure:
    """Plot up to five examples, clean and attacked at each eps, titled "before → after".

    A title in bold vermilion marks a fooled example. Of more than MAX_ROWS eps, MAX_ROWS are drawn,
    from the smallest to the largest.

    Args:
        pictures: The examples of a run.
        model: Label of the model.
        attack: Label of the attack.

    Returns:
        The figure.
    """
    chosen = [p for p in pictures if (p.model, p.attack) == (model, attack)]
    chosen.sort(key=lambda picture: picture.eps)
    rows = [list(group)[:5] for _, group in groupby(chosen, key=lambda picture: picture.eps)]
    rows = pick_evenly(rows, MAX_ROWS)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        if not rows:
            return plot_message(f"{format_text(model)}, {format_text(attack)}: no image is stored")
        # One axes for all images: an axes each takes ten times as long to lay out.
        figure = Figure(figsize=(7.6, 1.72 * (len(rows) + 1)))
        axes = figure.add_axes((0.06, 0.0, 0.94, 1.0))
        axes.set(xlim=(-0.04, 5), ylim=(len(rows) + 1, 0), xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.text(-0.04, 0.6, "clean", rotation=90, ha="right", va="center")
        for column, picture in enumerate(rows[-1]):
            _show(axes, picture.clean, column, 0)
            _title(axes, shorten(picture.before, 18), column, 0, fooled=False)
        for line, row in enumerate(rows, 1):
            count = f"{row[0].n_fooled} of {row[0].n_attacked} fooled"
            label = f"eps {format_text(row[0].eps_text)}\n{count}"
            axes.text(-0.04, line + 0.6, label, rotation=90, ha="right", va="center", fontsize=8)
            for column, picture in enumerate(row):
                _show(axes, picture.adversarial, column, line)
                before, after = shorten(picture.before, 18), shorten(picture.after, 18)
                join = " → " if len(before + after) <= 14 else "\n→ "
                _title(axes, before + join + after, column, line, picture.fooled)
        return figure


def _show(axes: Axes, pixels: npt.NDArray[Any], column: int, line: int) -> None:
    """Draw one image in square (column, line) of the grid."""
    image = np.clip(np.asarray(pixels, dtype=float), 0, 1)
    grey = image.ndim == 2 or image.shape[2] == 1
    image = image.reshape(image.shape[:2]) if grey else image
    place = (column + 0.03, column + 0.91, line + 1.0, line + 0.2)
    axes.imshow(
        image, cmap="gray", vmin=0, vmax=1, interpolation="nearest", extent=place, aspect="auto"
    )


def _title(axes: Axes, text: str, column: int, line: int, fooled: bool) -> None:
    """Write above an image what the model takes it for."""
    axes.text(
        column + 0.47, line + 0.17, text, fontsize=8, ha="center", va="bottom",
        color=PALETTE[3] if fooled else "0.25", weight="bold" if fooled else "normal",
    )  # fmt: skip


def plot_perturbation_grid(pictures: Sequence[AttackedExample], model: str) -> Figure:
    """Plot the perturbations of each attack at its largest eps, one row per attack.

    Red is brighter, blue darker, white unchanged. Each row is scaled to its own largest change,
    which the colour bar beside it states. Of colour images the mean over the channels is shown.

    Args:
        pictures: The examples of a run.
        model: Label of the model.

    Returns:
        The figure.
    """
    largest: dict[str, list[AttackedExample]] = {}
    for picture in (p for p in pictures if p.model == model):
        rows = largest.setdefault(picture.attack, [])
        if rows and picture.eps > rows[0].eps:
            rows.clear()
        if not rows or picture.eps == rows[0].eps:
            rows.append(picture)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(9.2, 1.32 * len(largest) + 0.1))
        axes = figure.add_axes((0.19, 0.0, 0.81, 1.0))
        axes.set(xlim=(0, 5.5), ylim=(len(largest), -0.04), xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        for line, (attack, row) in enumerate(largest.items()):
            changes = [p.adversarial - p.clean for p in row[:5]]
            changes = [c if c.ndim == 2 else c.mean(axis=2) for c in changes]
            most = max((float(np.abs(change).max()) for change in changes), default=0.0)
            label = f"{shorten(attack, 24)}\neps {format_text(row[0].eps_text)}"
            axes.text(-0.06, line + 0.5, label, ha="right", va="center", fontsize=8)
            _draw_scale(axes, line, most)
            for column, (picture, change) in enumerate(zip(row, changes, strict=False)):
                place = (column + 0.06, column + 0.94, line + 0.98, line + 0.14)
                axes.imshow(
                    change, cmap="RdBu_r", vmin=-most or -1, vmax=most or 1, extent=place,
                    interpolation="nearest", aspect="auto",
                )  # fmt: skip
                frame = Rectangle(
                    (column + 0.06, line + 0.14), 0.88, 0.84, fill=False, edgecolor="0.75", lw=0.6
                )
                axes.add_patch(frame)
                join = f"{shorten(picture.before, 12)} → {shorten(picture.after, 12)}"
                axes.text(column + 0.5, line + 0.11, join, fontsize=7.5, ha="center", va="bottom")
        return figure


def _draw_scale(axes: Axes, line: int, most: float) -> None:
    """Draw the colour bar of a row: from its largest darkening below to brightening above."""
    place = (5.06, 5.14, line + 0.98, line + 0.14)
    axes.imshow(np.linspace(1, -1, 64)[:, None], cmap="RdBu_r", extent=place, aspect="auto")
    for text, height in ((f"+{most:.3g}", 0.18), ("0", 0.56), (f"-{most:.3g}", 0.94)):
        axes.text(5.17, line + height, text, fontsize=7.5, ha="left", va="center")
