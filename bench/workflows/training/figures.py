"""Draw the figures of a training run: learning curves, accuracy per class, example images."""

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
from bench.workflows.training.attack_trainer import AttackEpoch, AttackOutcome
from bench.workflows.training.trainer import Epoch

SHOWN = 40
COLUMNS = 10
MAX_LABELLED_CLASSES = 24
"""With more classes, the figure shows neither their names nor their values."""
_Lines = dict[str, list[float | None]]
CLEAN: Any = PALETTE[0]
ATTACKED: Any = PALETTE[1]
"""Lighter than CLEAN, so that the two differ in greyscale."""
DASHES = ("-", "--", ":", "-.")
MAX_EXAMPLES = 10


def plot_learning_curves(history: Sequence[Epoch], best: Epoch) -> Figure:
    """Plot loss and error rate against the epoch, with the selected epoch marked.

    Training is thin, validation dashed. Adversarial training adds both on attacked images,
    certified training both at the worst logits within the bounds, in a lighter colour.

    Args:
        history: All epochs.
        best: The selected epoch.

    Returns:
        The figure.
    """
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
            _mark_epoch(axes, best.epoch, last=epochs[-1])
            axes.set(xlabel="epoch", ylabel=name)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            seen = [value for line in lines.values() for value in line if value]
            if seen:  # from the decade below the least; 0 has a place on the axis, too
                least = 10.0 ** math.floor(math.log10(min(seen)))
                axes.set_yscale("symlog", linthresh=least, linscale=0.4)
                axes.set_ylim(0, 1.5 * max(seen))
            axes.yaxis.set_major_formatter(
                _format_percent if name == "error rate" else StrMethodFormatter("{x:g}")
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


def _mark_epoch(axes: Axes, best: int, last: int) -> None:
    """Draw a line at the selected epoch, labelled on the side with more room."""
    right = best <= last / 2
    axes.axvline(best, color="0.5", linewidth=0.8, linestyle=":")
    axes.annotate(
        f"best: {best}", (best, 1), xycoords=("data", "axes fraction"), fontsize=8, color="0.4",
        textcoords="offset points", xytext=(3 if right else -3, -8),
        ha="left" if right else "right",
    )  # fmt: skip


def _format_percent(share: float, place: int | None = None) -> str:
    return f"{100 * share:g} %"


def plot_class_accuracy(correct: Sequence[int], n: Sequence[int], names: Sequence[str]) -> Figure:
    """Plot the test accuracy of each class that has images, with Wilson intervals.

    Args:
        correct: Correct predictions of each class.
        n: Images of each class.
        names: Names of the classes.

    Returns:
        The figure; a dotted line shows the accuracy over all classes.
    """
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
        if len(names) <= MAX_LABELLED_CLASSES:
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


def plot_predictions(images: Tensor, labels: Tensor, preds: Tensor, names: Sequence[str]) -> Figure:
    """Draw the first test images, then mistakes, titled "label → prediction" where they differ.

    Args:
        images: Test images, (n, c, h, w) in [0, 1].
        labels: Labels, (n,).
        preds: Predictions, (n,).
        names: Names of the classes.

    Returns:
        The figure, with at most SHOWN images.
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
            truth, predicted = (names[int(at[index])] for at in (labels, preds))
            right = truth == predicted
            text = (
                shorten(truth, 11)
                if right
                else f"{shorten(truth, 5)} \u2192 {shorten(predicted, 5)}"
            )
            axes.text(
                column + 0.5, line + 0.2, text, fontsize=8 if len(text) <= 7 else 5.5,
                ha="center", va="bottom",
                color="0.25" if right else PALETTE[3], weight="normal" if right else "bold",
            )  # fmt: skip
        return figure


# --------------------------------------------------------------------------------------- attacks


def plot_attack_curves(history: Sequence[AttackEpoch], best: AttackEpoch) -> Figure:
    """Plot the terms of each network's loss, and the success on held-out images, by epoch.

    Args:
        history: All epochs.
        best: The selected epoch, marked by a dotted line.

    Returns:
        The figure, with a 95 % Wilson band around the success.
    """
    epochs = [epoch.epoch for epoch in history]
    point = "." if len(epochs) == 1 else ""  # a line of one point is not seen
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.7 * (len(best.losses) + 1), 2.9), layout="constrained")
        *panels, last = figure.subplots(1, len(best.losses) + 1)
        for axes, (network, terms) in zip(panels, best.losses.items(), strict=True):
            for place, term in enumerate(terms):
                line = [epoch.losses[network][term] for epoch in history]
                look = {"color": PALETTE[place % len(PALETTE)], "marker": point}
                axes.plot(epochs, line, DASHES[place % len(DASHES)], label=term, **look)
            axes.set_title(f"{network}: loss")
            axes.legend()
        rates = [metrics.rate(e.validation_fooled, e.validation_n) for e in history]
        last.plot(epochs, [100 * rate.value for rate in rates], color=PALETTE[3], marker=point)
        low, high = ([100 * rate[at] for rate in rates] for at in (3, 4))
        last.fill_between(epochs, low, high, color=PALETTE[3], alpha=0.2, linewidth=0)
        last.set_title("held-out images fooled (%)")
        for axes in (*panels, last):
            axes.axvline(best.epoch, color="0.5", linewidth=0.8, linestyle=":")
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        return figure


def plot_attack_examples(
    x: Tensor, y: Tensor, outcome: AttackOutcome, names: Sequence[str], eps: float
) -> Figure:
    """Draw the first eligible image of each class: clean, its change, and attacked.

    The change is black at -eps and white at +eps; titles are "prediction before → after".

    Args:
        x: Clean images, (n, c, h, w) in [0, 1].
        y: Labels, (n,).
        outcome: The attack's images and the target's predictions, on the CPU.
        names: Names of the classes.
        eps: L-inf radius, in the unit of x.

    Returns:
        The figure, with at most MAX_EXAMPLES images.
    """
    chosen = []
    for label in y.unique().tolist()[:MAX_EXAMPLES]:
        chosen += (outcome.eligible & (y == label)).nonzero()[:1, 0].tolist()
    change = (0.5 + (outcome.x_adv - x) / (2 * eps)).clamp(0, 1)
    rows = {"clean": x, "change": change, "attacked": outcome.x_adv}
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(7.6, 2.6))
        axes = figure.add_axes((0.03, 0, 0.97, 1))
        axes.set(xlim=(0, MAX_EXAMPLES), ylim=(len(rows) + 0.02, -0.3), xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        for line, (what, images) in enumerate(rows.items()):
            axes.text(-0.02, line + 0.5, what, rotation=90, ha="right", va="center", fontsize=8)
            for column, index in enumerate(chosen):
                image = images[index].permute(1, 2, 0).squeeze(2).numpy()
                extent = (column + 0.04, column + 0.96, line + 0.96, line + 0.04)
                axes.imshow(image, cmap="gray", vmin=0, vmax=1, extent=extent, aspect="auto")
        for column, index in enumerate(chosen):
            before, after = (names[int(preds[index])] for preds in (outcome.before, outcome.after))
            fooled = before != after
            axes.text(
                column + 0.5, -0.04, f"{shorten(before, 6)} → {shorten(after, 6)}", fontsize=8,
                ha="center", va="bottom", color=PALETTE[3] if fooled else "0.25",
                weight="bold" if fooled else "normal",
            )  # fmt: skip
        return figure
