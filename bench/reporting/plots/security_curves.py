"""Plot security curves: the share of examples not broken against eps, one step per distance.

A marker ends each curve at the largest distance found: the remaining examples are not proven
robust, the attack only did not break them. Line style and marker distinguish attacks, besides
colour.
"""

from collections.abc import Iterator, Sequence

import matplotlib
import seaborn as sns
from matplotlib.figure import Figure

from bench.analysis.min_norm import Search, security_curve
from bench.reporting.formats.numbers import format_norm, format_text
from bench.reporting.plots.curves import MARKERS, NORM_UNITS
from bench.reporting.plots.style import OWN, PALETTE, STYLE, shorten

DASHES = ("-", "--", "-.", ":")


def iter_security_figures(found: Sequence[Search]) -> Iterator[tuple[str, str, Figure]]:
    """Yield the figure of each model, norm and goal under every minimum-norm attack.

    Args:
        found: Distances found by each minimum-norm attack.

    Yields:
        File name without suffix, caption and figure.
    """
    rivals: dict[tuple[str, ...], list[Search]] = {}
    for search in found:
        rivals.setdefault(search.rivals, []).append(search)
    for (model, norm, goal, target), searches in rivals.items():
        if not any(len(search.distances) for search in searches):
            continue
        aim = f"{goal} {format_text(target)}" if target else goal
        caption = (
            f"Security curves of {format_text(model)}, {format_norm(norm)}, {format_text(aim)}: "
            "the share of examples that are not broken at each eps; a curve ends at the largest "
            "distance that its search found."
        )
        name = "-".join(filter(None, ("security", model, norm, goal, target)))
        yield name, caption, plot_security_curves(searches)


def plot_security_curves(searches: Sequence[Search]) -> Figure:
    """Plot the share not broken (%) against eps, a curve per attack.

    Args:
        searches: Attacks on one model in one norm; one that failed is only named in the legend.

    Returns:
        The figure.
    """
    first = searches[0]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 4.0), layout="constrained")
        axes = figure.subplots()
        for place, search in enumerate(searches):
            colour = PALETTE[place % len(PALETTE)]
            if not len(search.distances):
                axes.plot([], [], color=colour, label=f"{shorten(search.attack)} ({search.status})")
                continue
            steps = security_curve(search.distances)
            sns.lineplot(
                x=steps.eps, y=100 * steps.rho, ax=axes, label=shorten(search.attack), legend=False,
                estimator=None, sort=False, drawstyle="steps-post", color=colour,
                linestyle=DASHES[place % len(DASHES)], linewidth=1.4,
                marker=MARKERS[place % len(MARKERS)], markevery=[-1], markersize=5.5,
                markerfacecolor=colour if search.implementation == OWN else "none",
                markeredgecolor=colour, clip_on=False,
            )  # fmt: skip
        n = max(len(search.distances) for search in searches)
        axes.set(ylim=(0, 102), ylabel="share not broken (%)")
        axes.set_xlim(left=0)
        norm = format_norm(first.norm)
        axes.set_xlabel(f"eps ({norm}: {NORM_UNITS.get(first.norm, first.norm)})")
        axes.set_title(f"{shorten(first.model)}, {norm}, {first.goal}, n = {n}")
        figure.legend(loc="outside right upper", labelspacing=0.7)
        return figure
