"""What a training run looks like: curves, accuracy of each class, test images with predictions."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from torch import Tensor

from bench.evaluation import metrics
from bench.reporting.plots.style import PALETTE, STYLE, shorten
from bench.workflows.training.trainer import Epoch

SHOWN = 40
COLUMNS = 10
VALUED = 24
"""Classes up to which each has its name and number in the figure."""
_Lines = dict[str, list[float | None]]
CLEAN: Any = PALETTE[0]
ATTACKED: Any = PALETTE[1]
"""Lighter than CLEAN: the two differ in grey, too."""


def curves(history: Sequence[Epoch], best: Epoch) -> Figure:
    """Loss and error rate against the epoch, the kept epoch marked: training (thin) and validation
    (dashed), and both once more (lighter) on attacked images under adversarial training, at the
    worst that intervals allow under certified training."""
    epochs = [e.epoch for e in history]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 3.1), layout="constrained")
        panels = figure.subplots(1, 2)
        both = {"loss": _losses(history), "error rate": _errors(history)}
        for axes, (name, lines) in zip(panels, both.items(), strict=True):
            for label, line in lines.items():
                held_out, attacked = label.startswith("validation"), "," in label
                axes.plot(
                    epochs, line, linestyle="--" if held_out else "-", label=label,
                    linewidth=1.6 if held_out else 1.1, color=ATTACKED if attacked else CLEAN,
                    marker="." if len(epochs) == 1 else "",  # a line of one point is not seen
                )  # fmt: skip
            _mark(axes, best.epoch, last=epochs[-1])
            axes.set(xlabel="epoch", ylabel=name)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            seen = [value for line in lines.values() for value in line if value]
            if seen:  # from the decade below the least; 0 has a place on the axis, too
                least = 10.0 ** math.floor(math.log10(min(seen)))
                axes.set_yscale("symlog", linthresh=least, linscale=0.4)
                axes.set_ylim(0, 1.5 * max(seen))
            axes.yaxis.set_major_formatter(
                _told_percent if name == "error rate" else StrMethodFormatter("{x:g}")
            )
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
        return figure


def _losses(history: Sequence[Epoch]) -> _Lines:
    lines: _Lines = {
        "training": [e.train_loss for e in history],
        "validation": [e.validation_loss for e in history],
    }
    if history[0].adversarial_loss is not None:
        lines["training, attacked"] = [e.adversarial_loss for e in history]
        lines["validation, attacked"] = [e.validation_adversarial_loss for e in history]
    if history[0].certified_loss is not None:
        lines["training, worst"] = [e.certified_loss for e in history]
        lines["validation, worst"] = [e.validation_certified_loss for e in history]
    return lines


def _errors(history: Sequence[Epoch]) -> _Lines:
    lines: _Lines = {
        "training": [1 - e.train_correct / e.train_n for e in history],
        "validation": [1 - e.validation_correct / e.validation_n for e in history],
    }
    if history[0].adversarial_correct is not None:
        lines["training, attacked"] = [
            1 - (e.adversarial_correct or 0) / e.train_n for e in history
        ]
        lines["validation, attacked"] = [
            1 - (e.validation_adversarial_correct or 0) / e.validation_n for e in history
        ]
    if history[0].certified_correct is not None:
        lines["training, worst"] = [1 - (e.certified_correct or 0) / e.train_n for e in history]
        lines["validation, worst"] = [
            1 - (e.validation_certified_correct or 0) / e.validation_n for e in history
        ]
    return lines


def _mark(axes: Axes, kept: int, last: int) -> None:
    """A line at the kept epoch, its words on the side where there is room."""
    right = kept <= last / 2
    axes.axvline(kept, color="0.5", linewidth=0.8, linestyle=":")
    axes.annotate(
        f"kept: {kept}", (kept, 1), xycoords=("data", "axes fraction"), fontsize=8, color="0.4",
        textcoords="offset points", xytext=(3 if right else -3, -8),
        ha="left" if right else "right",
    )  # fmt: skip


def _told_percent(share: float, place: int | None = None) -> str:
    return f"{100 * share:g} %"


def per_class(correct: Sequence[int], n: Sequence[int], names: Sequence[str]) -> Figure:
    """Test accuracy of each class that has images, with its Wilson interval; a line for all."""
    rates = [metrics.rate(k, of) for k, of in zip(correct, n, strict=True) if of]
    names = [name for name, of in zip(names, n, strict=True) if of]
    overall = metrics.rate(sum(correct), sum(n))
    values = [100 * rate.value for rate in rates]
    spread = [
        [100 * (rate.value - rate.low) for rate in rates],
        [100 * (rate.high - rate.value) for rate in rates],
    ]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 2.8), layout="constrained")
        axes = figure.subplots()
        places = range(len(names))
        axes.axhline(100 * overall.value, color="0.5", linewidth=0.8, linestyle=":")
        axes.errorbar(
            places, values, yerr=spread, fmt="o", color=PALETTE[0], ecolor="0.4", capsize=3,
            elinewidth=1.2, markersize=4,
        )  # fmt: skip
        if len(names) <= VALUED:
            for place, value in enumerate(values):
                axes.annotate(
                    f"{value:.1f}", (place, value), textcoords="offset points", xytext=(5, -3),
                    fontsize=8, color="0.25",
                )  # fmt: skip
            labels = [shorten(name, 14) for name in names]
            upright = max(map(len, labels)) <= 4
            axes.set_xticks(
                places, labels, rotation=0 if upright else 40, ha="center" if upright else "right"
            )
        axes.set_xlim(-0.6, len(names) - 0.4)
        axes.set_ylim(top=min(axes.get_ylim()[1], 100.5))
        axes.set(xlabel="class", ylabel="test accuracy (%)")
        axes.grid(visible=False, axis="x")
        return figure


def predictions(images: Tensor, labels: Tensor, preds: Tensor, names: Sequence[str]) -> Figure:
    """Test images, titled "label -> prediction" where they differ: first ones, then mistakes.

    Shapes: images (n, c, h, w) in [0, 1]; labels, preds (n,).
    """
    wrong = (labels != preds).nonzero()[:, 0][: SHOWN // 2]
    first = torch.arange(min(SHOWN - len(wrong), len(labels)))
    chosen = torch.cat([first, wrong]).tolist()
    lines = -(-len(chosen) // COLUMNS)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(7.6, 0.95 * lines))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, COLUMNS), ylim=(lines, 0), xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        for place, index in enumerate(chosen):
            column, line = place % COLUMNS, place // COLUMNS
            image = images[index].permute(1, 2, 0).squeeze(2).numpy()
            extent = (column + 0.08, column + 0.92, line + 1.0, line + 0.24)
            axes.imshow(image, cmap="gray", vmin=0, vmax=1, extent=extent, aspect="auto")
            truth, told = (names[int(at[index])] for at in (labels, preds))
            right = truth == told
            text = shorten(truth, 11) if right else f"{shorten(truth, 5)} \u2192 {shorten(told, 5)}"
            axes.text(
                column + 0.5, line + 0.2, text, fontsize=8 if len(text) <= 7 else 5.5,
                ha="center", va="bottom",
                color="0.25" if right else PALETTE[3], weight="normal" if right else "bold",
            )  # fmt: skip
        return figure
