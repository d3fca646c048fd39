"""What a training run looks like: curves, accuracy of each class, test images with predictions."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from torch import Tensor

from bench import metrics
from bench.style import PALETTE, STYLE
from bench.training.standard import Epoch

SHOWN = 40
COLUMNS = 10
LOOKS: dict[str, dict[str, Any]] = {
    "training": {"color": PALETTE[0], "linestyle": "-"},
    "validation": {"color": PALETTE[3], "linestyle": "--"},
}


def curves(history: Sequence[Epoch], best: Epoch) -> Figure:
    """Loss and error rate, training and validation, against the epoch; the kept epoch marked."""
    epochs = [e.epoch for e in history]
    panels = {
        "loss": ([e.train_loss for e in history], [e.validation_loss for e in history]),
        "error rate": (
            [1 - e.train_correct / e.train_n for e in history],
            [1 - e.validation_correct / e.validation_n for e in history],
        ),
    }
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 2.9), layout="constrained")
        for axes, (name, lines) in zip(figure.subplots(1, 2), panels.items(), strict=True):
            for line, label, dashes in zip(
                lines, ("training", "validation"), ("-", "--"), strict=True
            ):
                colour = PALETTE[0] if label == "training" else PALETTE[3]
                axes.plot(epochs, line, dashes, color=colour, linewidth=1.3, label=label)
            axes.axvline(best.epoch, color="0.5", linewidth=0.8, linestyle=":")
            axes.annotate(
                f"kept: {best.epoch}", (best.epoch, 1), xycoords=("data", "axes fraction"),
                textcoords="offset points", xytext=(3, -10), fontsize=8, color="0.4",
            )  # fmt: skip
            axes.set(xlabel="epoch", ylabel=name)
            axes.set_yscale("symlog", linthresh=1e-3)
            axes.set_ylim(bottom=0)
            percent = name == "error rate"
            axes.yaxis.set_major_formatter(
                _told_percent if percent else StrMethodFormatter("{x:g}")
            )
        axes.legend()
        return figure


def _told_percent(share: float, place: int | None = None) -> str:
    return f"{100 * share:g} %"


def per_class(correct: Sequence[int], n: Sequence[int], names: Sequence[str]) -> Figure:
    """Test accuracy of each class with its 95 % Wilson interval."""
    rates = [metrics.rate(k, of) for k, of in zip(correct, n, strict=True)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 2.8), layout="constrained")
        axes = figure.subplots()
        values = [100 * rate.value for rate in rates]
        spread = [
            [100 * (rate.value - rate.low) for rate in rates],
            [100 * (rate.high - rate.value) for rate in rates],
        ]
        axes.bar(names, values, color=PALETTE[0], width=0.7)
        axes.errorbar(names, values, yerr=spread, fmt="none", ecolor="0.25", capsize=3)
        for place, value in enumerate(values):
            axes.text(place, 2, f"{value:.1f}", ha="center", color="white", fontsize=8)
        axes.set_ylim(0, 100)
        axes.set(xlabel="class", ylabel="test accuracy (%), 95 % interval")
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
            truth, told = names[int(labels[index])], names[int(preds[index])]
            right = truth == told
            axes.text(
                column + 0.5, line + 0.2, truth if right else f"{truth} \u2192 {told}", fontsize=8,
                ha="center", va="bottom", color="0.25" if right else PALETTE[3],
                weight="normal" if right else "bold",
            )  # fmt: skip
        return figure
