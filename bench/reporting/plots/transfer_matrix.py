"""Tabulate and plot transfer attacks: source model by victim model.

The error rate of a victim is 1 - robust accuracy, so an example that it misclassifies without
attack counts as an error. The confidence is the mean over the examples that the attack fooled.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bench.reporting.formats.numbers import (
    DASH,
    format_norm,
    format_percent,
    format_text,
    is_missing,
)
from bench.reporting.plots.style import STYLE, shorten

MAX_PANELS = 4
"""Panels of a figure; of more eps, the largest are drawn."""
LEGEND = (
    "error rate (%)\n(mean confidence of the fooled examples)\nframed: crafted on the model itself"
)
"""What the numbers and the frame of a cell are."""


class TransferMatrix(NamedTuple):
    """One attack at one eps, crafted on every source and evaluated on every victim."""

    attack: str
    norm: str
    goal: str
    eps: float
    eps_text: str
    sources: list[str]
    victims: list[str]
    cells: dict[tuple[str, str], dict[str, Any]]
    """Rows of table.csv by (source, victim); combinations that were not planned are absent."""


def build_matrices(table: pd.DataFrame) -> list[TransferMatrix]:
    """Build a matrix for each attack crafted on named models, at each eps above 0.

    Args:
        table: The rows of table.csv.

    Returns:
        The matrices, in the order of the table.
    """
    if "source" not in table:  # a table of an older version
        return []
    crafted = table[(table["source"].fillna("") != "") & (table["eps"] > 0)]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in crafted.to_dict("records"):
        # Each value of a varied parameter is a separate attack, as is each seed.
        varied = f", {row['varied']} {row['value']:g}" if row["varied"] else ""
        seed = row.get("seed")
        attack = row["family"] + varied + ("" if is_missing(seed) else f", seed {seed}")
        key = (attack, row["norm"], row["goal"], float(row["eps"]), row["eps_text"])
        groups.setdefault(key, []).append({str(name): row[name] for name in row})
    found = []
    for (attack, norm, goal, eps, text), rows in groups.items():
        cells = {(row["source"], row["model"]): row for row in rows}
        sources = list(dict.fromkeys(row["source"] for row in rows))
        victims = list(dict.fromkeys(row["model"] for row in rows))
        found.append(TransferMatrix(attack, norm, goal, eps, text, sources, victims, cells))
    return found


def compute_error_rate(row: dict[str, Any]) -> float | None:
    """Compute 1 - robust accuracy.

    Args:
        row: A row of table.csv.

    Returns:
        The error rate in [0, 1], or None if the cell has no number.
    """
    if row["status"] != "ok" or is_missing(row["robust_correct"]):
        return None
    return float(1 - row["robust_correct"] / row["n"])


def find_hidden_gradients(table: pd.DataFrame) -> list[str]:
    """Describe victims that a white-box attack fools less than a transferred one.

    An attack with the victim's own gradient should fool at least as many examples. If the 95 %
    intervals of the two robust accuracies do not overlap, the gradient is a symptom of gradient
    masking (Athalye et al. 2018, section 3.1), not of robustness.

    Args:
        table: The rows of table.csv.

    Returns:
        One sentence per victim, attack and eps.
    """
    sentences = []
    for matrix in build_matrices(table):
        for victim in matrix.victims:
            own = matrix.cells.get((victim, victim))
            if own is None or compute_error_rate(own) is None:
                continue
            if matrix.goal != "untargeted" or own["threat_model"] != "white-box":
                continue  # a target may be missed; without gradients, none can be masked
            better = [
                (compute_error_rate(row), source)
                for (source, judge), row in matrix.cells.items()
                if judge == victim and source != victim and compute_error_rate(row) is not None
                if row["robust_high"] < own["robust_low"]
            ]
            if better:
                rate, source = max(better, key=lambda each: each[0] or 0)
                sentences.append(
                    f"{victim}: at eps {matrix.eps_text}, {matrix.attack} crafted on {source} "
                    f"makes {format_percent(rate)} errors, crafted on the model itself "
                    f"{format_percent(compute_error_rate(own))} (n = {own['n']}): its gradient "
                    "does not lead to the adversarial examples (gradient masking), so its robust "
                    "accuracy under this attack overstates its robustness."
                )
    return sentences


def iter_transfer_figures(table: pd.DataFrame) -> Iterator[tuple[str, str, Figure]]:
    """Yield the figure of each attack in each norm.

    Args:
        table: The rows of table.csv.

    Yields:
        File name without suffix, caption and figure.
    """
    found: dict[tuple[str, str, str], list[TransferMatrix]] = {}
    for matrix in build_matrices(table):
        found.setdefault((matrix.attack, matrix.norm, matrix.goal), []).append(matrix)
    for (attack, norm, goal), group in found.items():
        shown = sorted(group, key=lambda matrix: matrix.eps)[-MAX_PANELS:]
        about = "error rate, and mean confidence of the fooled examples in parentheses"
        caption = f"{format_text(attack)}, {format_norm(norm)}, {goal}: source by victim, {about}."
        yield f"transfer-{attack}-{norm}-{goal}", caption, plot_transfer_heatmap(shown)


def plot_transfer_heatmap(shown: list[TransferMatrix]) -> Figure:
    """Plot the error rate (%) by source (rows) and victim (columns), one panel per eps.

    Parentheses hold the mean confidence of the fooled examples. A frame marks white-box cells,
    crafted on the model that they are evaluated on, alone or among others. The figure says both.

    Args:
        shown: Matrices of one attack in one norm, by eps.

    Returns:
        The figure.
    """
    first = shown[0]
    size = (2.2 + 0.95 * len(first.victims) * len(shown), 2.1 + 0.52 * len(first.sources))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(size[0], 4.2), size[1]), layout="constrained")
        panels = figure.subplots(1, len(shown), squeeze=False)[0]
        for place, (axes, matrix) in enumerate(zip(panels, shown, strict=True)):
            _panel(axes, matrix, last=place == len(shown) - 1)
            axes.set_title(f"eps {matrix.eps_text}, {format_norm(matrix.norm)}")
            ticks = [k + 0.5 for k in range(len(matrix.victims))]
            axes.set_xticks(
                ticks, [shorten(v, 22) for v in matrix.victims], rotation=30, ha="right"
            )
            axes.set_xlabel("evaluated on")
            names = [shorten(s, 22) for s in matrix.sources] if not place else []
            axes.set_yticks([k + 0.5 for k in range(len(names))], names, rotation=0)
        panels[0].set_ylabel("crafted on")
        figure.supxlabel(LEGEND, fontsize=8, color="0.3")
        return figure


def _panel(axes: Axes, matrix: TransferMatrix, last: bool) -> None:
    values = np.full((len(matrix.sources), len(matrix.victims)), np.nan)
    for (source, victim), row in matrix.cells.items():
        rate = compute_error_rate(row)
        place = matrix.sources.index(source), matrix.victims.index(victim)
        values[place] = np.nan if rate is None else 100 * rate
    sns.heatmap(
        values, ax=axes, vmin=0, vmax=100, cmap="Blues", linewidths=0.8, linecolor="white",
        cbar=last, cbar_kws={"label": "error rate (%)"},
    )  # fmt: skip
    axes.grid(visible=False)
    for i, source in enumerate(matrix.sources):
        for j, victim in enumerate(matrix.victims):
            cell = matrix.cells.get((source, victim))
            if cell is None:
                continue
            axes.text(
                j + 0.5, i + 0.5, _cell_text(cell), ha="center", va="center", fontsize=8,
                color="white" if values[i, j] > 60 else "0.1",
            )  # fmt: skip
            if source == victim or str(cell.get("threat_model", "")).startswith("white-box"):
                frame = Rectangle(
                    (j + 0.03, i + 0.03), 0.94, 0.94, fill=False, edgecolor="0.1", linewidth=1.3
                )
                axes.add_patch(frame)


def _cell_text(row: dict[str, Any]) -> str:
    rate = compute_error_rate(row)
    if rate is None:
        return DASH
    confidence = row["mean_confidence_fooled"]
    return f"{100 * rate:.1f}" + (
        "" if is_missing(confidence) else f"\n({format_percent(confidence)})"
    )
