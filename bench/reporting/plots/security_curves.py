"""Security curves: the share of examples that stand against eps, a step for each distance found.

A curve ends in a marker where nothing more was found: what is left of it is not robust, it was
only not broken by that search. Line style and marker say which attack, as colour does.
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
    """(name, caption, figure) of each model, norm and goal under every search."""
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
    """The share that stands (%) against eps, a line per search; one that failed is only named."""
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
        axes.set(ylim=(0, 102), ylabel="share that stands (%)")
        axes.set_xlim(left=0)
        norm = format_norm(first.norm)
        axes.set_xlabel(f"eps ({norm}: {NORM_UNITS.get(first.norm, first.norm)})")
        axes.set_title(f"{shorten(first.model)}, {norm}, {first.goal}, n = {n}")
        figure.legend(loc="outside right upper", labelspacing=0.7)
        return figure
