"""Plot robust accuracy against eps, one curve per attack.

Colour is never the only distinction. The marker names the attack; a solid line with a filled
marker is bench's implementation, a dashed line with a larger, hollow marker that of a library, in
the colour of the attack that it repeats, so where both coincide the reader sees a ringed dot.
Attacks with equal counts at every eps share a curve and a legend entry, joined by "=". Reference
figures of the literature are thin, dotted and grey.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bench.core.contracts.types import BALLS
from bench.engine.threats.registry import find_threat
from bench.evaluation import metrics
from bench.reporting.formats.numbers import format_norm, format_number, format_text, map_eps_texts
from bench.reporting.plots.style import (
    OWN,
    PALETTE,
    STYLE,
    DisplayedFigure,
    plot_message,
    shorten,
)

MARKERS = "osD^vPX<>phd"
REFERENCE_MARKERS = "x+1234"
NORM_UNITS = {
    "linf": "largest change of a pixel, pixels in [0, 1]",
    "l2": "Euclidean, pixels in [0, 1]",
    "l1": "summed change, pixels in [0, 1]",
    "l0": "pixels changed",
}


class AccuracyCurve(NamedTuple):
    """Robust accuracy over eps of one attack, or of several with equal counts."""

    labels: list[str]
    notes: list[str]
    """What a legend says after each label: failed cells, examples that were not attacked."""
    own: bool
    family: str
    """The label without the library's name, common to an attack and its reference."""
    cells: pd.DataFrame
    """Sorted by eps; a failed cell is a row of NaN, which interrupts the line."""


class ReferenceCurve(NamedTuple):
    """Robust accuracy of one attack as a source reports it."""

    label: str
    attack: str
    eps: list[float]
    percents: list[float]
    look: dict[str, Any]


def plot_accuracy_curves(
    table: pd.DataFrame, model: str, norm: str, published: pd.DataFrame | None = None
) -> Figure:
    """Plot robust accuracy (%) against eps, one curve per untargeted attack.

    Bands, and bars where a point has no neighbour, are 95 % Wilson intervals. Each curve has a
    point at eps 0, the clean accuracy. With a single eps the attacks are listed, with error bars.

    Args:
        table: The rows of table.csv.
        model: Label of the model.
        norm: The norm.
        published: The rows of published.csv, or None; robust accuracies of this model are drawn in
            grey.

    Returns:
        The figure.
    """
    curves = _curves(select_untargeted(table, model, norm))
    numbered = [curve for curve in curves if (curve.cells["status"] == "ok").any()]
    with matplotlib.rc_context(STYLE):
        if not numbered:
            return plot_message(
                f"{format_text(model)}, {format_norm(norm)}: no attack produced a number"
            )
        planned = pd.concat([curve.cells for curve in curves])
        single = planned.loc[planned["status"].notna(), "eps"].nunique() == 1
        others = _others(published, model, norm)
        if single:
            figure = _points(numbered, others)
        else:
            figure = _lines(curves, others, norm, map_eps_texts(table))
        counts = sorted({int(n) for curve in numbered for n in curve.cells["n"].dropna()})
        size = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
        figure.axes[0].set_title(f"{shorten(model)}, {format_norm(norm)}, {size}")
        return figure


def select_untargeted(table: pd.DataFrame, model: str, norm: str) -> pd.DataFrame:
    """Select the untargeted cells of a model in a norm that were not skipped.

    Args:
        table: The rows of table.csv.
        model: Label of the model.
        norm: The norm.

    Returns:
        The selected rows.
    """
    rows = table[(table["model"] == model) & (table["norm"] == norm)]
    return rows[(rows["goal"] == "untargeted") & (rows["status"] != "skipped")]


def _curves(rows: pd.DataFrame) -> list[AccuracyCurve]:
    smallest = rows.loc[rows["eps"] > 0, "eps"].min()
    merged: dict[tuple[Any, ...], AccuracyCurve] = {}
    for label, cells in rows.groupby("attack", sort=False):
        cells = cells.sort_values("eps").reset_index(drop=True)
        for name in ("robust_accuracy", "robust_low", "robust_high", "robust_correct", "n"):
            cells[name] = pd.to_numeric(cells[name]).astype(float).where(cells["status"] == "ok")
        failed = int((cells["status"] == "failed").sum())
        note = f" ({failed} failed)" if failed else ""
        note += _note_certified(cells)
        library = str(cells["implementation"].iloc[0])
        cells = _with_clean_point(cells, smallest)
        family = _family(str(label), library)
        curve = AccuracyCurve([shorten(label)], [note], library == OWN, family, cells)
        counts = cells[["eps", "n", "robust_correct"]].fillna(-1).itertuples(index=False, name=None)
        key = ("failed", label) if failed else tuple(counts)
        same = merged.setdefault(key, curve)
        if same is not curve:
            merged[key] = same._replace(
                labels=[*same.labels, *curve.labels],
                notes=[*same.notes, note],
                own=same.own or curve.own,
            )
    return list(merged.values())


def _note_certified(cells: pd.DataFrame) -> str:
    """Say how many examples a curve counts as robust that were not attacked."""
    if "certified" not in cells:
        return ""
    counts = pd.to_numeric(cells["certified"]).fillna(0).astype(int)
    if not counts.any():
        return ""
    return f"\n(up to {counts.max()} of {cells['n'].max():.0f} certified, not attacked)"


def _legend_text(curve: AccuracyCurve) -> str:
    """Join the labels of attacks with equal counts, each with its note."""
    return "\n= ".join(map(str.__add__, curve.labels, curve.notes))


def _with_clean_point(cells: pd.DataFrame, smallest: float) -> pd.DataFrame:
    """Add the point at eps 0, where the ball contains only the clean image.

    Where the attack did not run at the smallest eps of the others, a row of NaN keeps the line
    from leading across it.
    """
    known = cells[(cells["status"] == "ok") & cells["clean_correct"].notna()]
    if known.empty or (cells["eps"] == 0).any():
        return cells
    rate = metrics.rate(int(known["clean_correct"].iloc[0]), int(known["n"].iloc[0]))
    clean = {
        "eps": 0.0, "n": float(rate.n), "robust_correct": float(rate.k), "robust_low": rate.low,
        "robust_high": rate.high, "robust_accuracy": rate.value,
    }  # fmt: skip
    first = float(cells["eps"].iloc[0])
    gap = [] if first == smallest else [{"eps": first / 2}]
    return pd.concat([pd.DataFrame([clean, *gap]), cells], ignore_index=True)


def _others(published: pd.DataFrame | None, model: str, norm: str) -> list[ReferenceCurve]:
    """Collect what sources report about this model under untargeted attacks."""
    if published is None or published.empty:
        return []
    rows = published[(published["model"] == model) & (published["norm"] == norm)]
    rows = rows[(rows["goal"] == "untargeted") & (rows["figure"] == "robust_accuracy")]
    sources = list(dict.fromkeys(rows["source"]))
    several = {source for source, own in rows.groupby("source") if own["attack"].nunique() > 1}
    found = []
    for (source, attack), values in rows.groupby(["source", "attack"], sort=False):
        values = values.sort_values("eps")
        marker = REFERENCE_MARKERS[sources.index(source) % len(REFERENCE_MARKERS)]
        look = {"color": "0.35", "marker": marker, "markersize": 6, "zorder": 5}
        label = f"published: {shorten(source)}"
        label += f",\n{shorten(attack)}" if source in several else ""
        percents = [100 * value for value in values["published"]]
        found.append(ReferenceCurve(label, str(attack), list(values["eps"]), percents, look))
    return found


def _family(label: str, library: str) -> str:
    rest = re.sub(re.escape(library), "", label, flags=re.IGNORECASE).strip(" -_:/()[]")
    return rest.lower() or label.lower()


def _looks(curves: Sequence[AccuracyCurve]) -> list[dict[str, Any]]:
    """Choose colour and marker by family, line and fill by implementation."""
    order = list(dict.fromkeys(curve.family for curve in curves))
    looks = []
    for curve in curves:
        place = order.index(curve.family)
        colour = PALETTE[place % len(PALETTE)]
        look = {"color": colour, "marker": MARKERS[place % len(MARKERS)], "linewidth": 1.4}
        own = {"linestyle": "-", "markersize": 4.5, "zorder": 3}
        other = {"linestyle": "--", "markersize": 8.5, "markerfacecolor": "none", "zorder": 4}
        looks.append({**look, **(own if curve.own else other)})
    return looks


def _lines(
    curves: Sequence[AccuracyCurve],
    others: Sequence[ReferenceCurve],
    norm: str,
    names: dict[float, str],
) -> Figure:
    figure = DisplayedFigure(figsize=(8.0, 4.4), layout="constrained")
    axes = figure.subplots()
    handles, labels = [], []
    for curve, look in zip(curves, _looks(curves), strict=True):
        cells = curve.cells
        eps = cells["eps"].astype(float)
        low, high = 100 * cells["robust_low"], 100 * cells["robust_high"]
        axes.fill_between(eps, low, high, color=look["color"], alpha=0.15, linewidth=0)
        accuracy = 100 * cells["robust_correct"] / cells["n"]
        (line,) = axes.plot(eps, accuracy, **look)
        known = accuracy.notna()
        alone = known & ~known.shift(1, fill_value=False) & ~known.shift(-1, fill_value=False)
        if alone.any():  # no band shows the interval of a point without a neighbour
            ends = [accuracy - low, high - accuracy]
            bar = [np.clip(end[alone], 0, None) for end in ends]
            style = {"color": look["color"], "linestyle": "none", "capsize": 3}
            axes.errorbar(eps[alone], accuracy[alone], yerr=bar, **style)
        handles.append(line)
        labels.append(_legend_text(curve))
    for other in others:
        handles += axes.plot(other.eps, other.percents, linestyle=":", linewidth=0.9, **other.look)
        labels.append(other.label)
    axes.set(ylim=(-2, 102), ylabel="robust accuracy (%)")
    axes.set_xlabel(f"eps ({format_norm(norm)}: {_name_unit(norm)})")
    marked = select_ticks(
        [eps for curve in curves for eps in curve.cells["eps"][curve.cells["n"].notna()]]
    )
    axes.set_xticks(marked, [names.get(tick, format_number(tick)) for tick in marked])
    figure.legend(handles, labels, loc="outside right upper", labelspacing=0.7)
    return figure


def _name_unit(norm: str) -> str:
    """Return what eps measures: the unit of a norm, the level of a family of images."""
    return NORM_UNITS[norm] if norm in BALLS else find_threat(norm).level


def select_ticks(values: Iterable[float]) -> list[float]:
    """Select the eps whose labels do not overlap on an axis.

    Args:
        values: The eps that were run.

    Returns:
        The selected eps, ascending.
    """
    selected: list[float] = []
    every = sorted(set(map(float, values)))
    for value in every:
        if not selected or value - selected[-1] >= 0.07 * (every[-1] - every[0]):
            selected.append(value)
    return selected


def _points(curves: Sequence[AccuracyCurve], others: Sequence[ReferenceCurve]) -> Figure:
    lines = sum(_legend_text(curve).count("\n") + 1 for curve in curves)
    figure = DisplayedFigure(figsize=(7.0, 1.3 + 0.34 * lines))
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    for place, (curve, look) in enumerate(zip(curves, _looks(curves), strict=True)):
        planned = curve.cells[curve.cells["status"].notna()]
        cell = planned.dropna(subset=["robust_accuracy"]).iloc[0]
        value = 100 * cell["robust_correct"] / cell["n"]
        reach = [[value - 100 * cell["robust_low"]], [100 * cell["robust_high"] - value]]
        bar = np.clip(reach, 0, None)  # the last bit of a Wilson bound may lie past the rate
        axes.errorbar([value], [place], xerr=bar, capsize=3, **{**look, "linestyle": "none"})
    for other in others:
        places = [k for k, curve in enumerate(curves) if shorten(other.attack) in curve.labels]
        percents = other.percents * len(places)
        axes.plot(percents, places, linestyle="none", label=other.label, **other.look)
    if others:
        figure.legend(loc="outside right upper")
    axes.set_yticks(range(len(curves)), [_legend_text(curve) for curve in curves])
    axes.set(xlim=(-2, 102), ylim=(len(curves) - 0.5, -0.5), xlabel="robust accuracy (%)")
    return figure
