"""What training an attack looks like: curves of every loss, and what the attack does to images."""

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from bench.evaluation import metrics
from bench.reporting.plots.style import PALETTE, STYLE, shorten
from bench.workflows.training.attack_trainer import Epoch, Outcome

DASHES = ("-", "--", ":", "-.")
SHOWN = 10


def curves(history: Sequence[Epoch], best: Epoch) -> Figure:
    """A panel for each network's loss, part by part, and one for the success on held-out images
    with its 95 % band; the dotted line is the epoch that was kept."""
    epochs = [epoch.epoch for epoch in history]
    point = "." if len(epochs) == 1 else ""  # a line of one point is not seen
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.7 * (len(best.losses) + 1), 2.9), layout="constrained")
        *panels, last = figure.subplots(1, len(best.losses) + 1)
        for axes, (network, parts) in zip(panels, best.losses.items(), strict=True):
            for place, part in enumerate(parts):
                line = [epoch.losses[network][part] for epoch in history]
                look = {"color": PALETTE[place % len(PALETTE)], "marker": point}
                axes.plot(epochs, line, DASHES[place % len(DASHES)], label=part, **look)
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


def examples(x: Tensor, y: Tensor, done: Outcome, names: Sequence[str], eps: float) -> Figure:
    """The first eligible image of each class: clean, its change (-eps black, +eps white), and
    attacked, under "prediction before → after".

    Shapes: x (n, c, h, w) in [0, 1]; y (n,).
    """
    chosen = []
    for label in y.unique().tolist()[:SHOWN]:
        chosen += (done.eligible & (y == label)).nonzero()[:1, 0].tolist()
    change = (0.5 + (done.x_adv - x) / (2 * eps)).clamp(0, 1)
    rows = {"clean": x, "change": change, "attacked": done.x_adv}
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(7.6, 2.6))
        axes = figure.add_axes((0.03, 0, 0.97, 1))
        axes.set(xlim=(0, SHOWN), ylim=(len(rows) + 0.02, -0.3), xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        for line, (what, images) in enumerate(rows.items()):
            axes.text(-0.02, line + 0.5, what, rotation=90, ha="right", va="center", fontsize=8)
            for column, index in enumerate(chosen):
                image = images[index].permute(1, 2, 0).squeeze(2).numpy()
                extent = (column + 0.04, column + 0.96, line + 0.96, line + 0.04)
                axes.imshow(image, cmap="gray", vmin=0, vmax=1, extent=extent, aspect="auto")
        for column, index in enumerate(chosen):
            before, after = (names[int(told[index])] for told in (done.before, done.after))
            fooled = before != after
            axes.text(
                column + 0.5, -0.04, f"{shorten(before, 6)} → {shorten(after, 6)}", fontsize=8,
                ha="center", va="bottom", color=PALETTE[3] if fooled else "0.25",
                weight="bold" if fooled else "normal",
            )  # fmt: skip
        return figure
