"""Lay out line charts of robust accuracy against eps or queries as SVG coordinates.

Coordinates are computed here, in units of the view box, so the page displays charts without a
script; the script moves the guide from point to point and prints the values in the legend.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from bench.evaluation import metrics
from bench.reporting.formats.numbers import (
    DASH,
    format_count,
    format_norm,
    format_rate,
    format_text,
    map_eps_texts,
)
from bench.reporting.report import accuracy_view
from bench.reporting.report.views import Row, group_rows, to_rows
from bench.suite.labels import WORST_CASE

WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 10, 38
"""Margins inside the view box, for the texts of the axes."""
FRAME = {
    "width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "top": TOP,
    "bottom": HEIGHT - BOTTOM, "middle": (LEFT + WIDTH - RIGHT) / 2,
}  # fmt: skip
"""What the template draws the axes with."""
LETTER = 7
"""Width of a digit in the size of the labels, rounded up."""
LABEL_ROOM = 40
"""Least distance between the middles of two labels."""
TONES = 8
"""Colours of the style sheet; further curves reuse them, dashed."""
MANY_CURVES = 5
"""From this many attacks on, only a highlighted curve has its band."""
CLEAN = "0"


class ChartLine(NamedTuple):
    """The curve of one attack, of several with equal counts, or of the worst case over all."""

    label: str
    style: str
    """CSS classes: tone and dash, or "worst"."""
    path: str
    """SVG path of the curve, interrupted where a cell has no number."""
    band: str
    """SVG path of the band of 95 % intervals."""
    bars: str
    """SVG path of the intervals of points without a neighbour, which no band shows."""
    marks: list[tuple[float, float]]
    values: list[str]
    """Text at each point: rate, interval and counts, or a dash."""


class Chart(NamedTuple):
    """All attacks of one norm on one model, against eps or, at one eps, against the queries."""

    title: str
    axis: str
    """Title of the horizontal axis."""
    points: list[str]
    """Text of each point in a sentence."""
    places: list[float]
    """x coordinate of each point."""
    labels: list[tuple[float, str]]
    """x coordinate of the middle and text of each label under the axis."""
    levels: list[tuple[float, str]]
    """y coordinate and text of the grid lines."""
    lines: list[ChartLine]
    faded: bool


def build_charts(table: pd.DataFrame, worst: pd.DataFrame) -> list[Chart]:
    """Build a chart for each model and norm with untargeted attacks at some eps above 0.

    At eps 0 the ball contains only the clean image, so a curve starts at the clean accuracy.

    Args:
        table: The rows of table.csv.
        worst: The rows of worst.csv.

    Returns:
        The charts, in the order of the table.
    """
    eps_texts = map_eps_texts(table)
    shown = [row for row in to_rows(table) if _is_charted(row)]
    together = group_rows(to_rows(worst), "model", "norm", "goal")
    tones = {
        (norm, attack): k
        for (norm,), rows in group_rows(shown, "norm").items()
        for k, attack in enumerate(dict.fromkeys(row["attack"] for row in rows))
    }
    return [
        _chart(rows, together.get((model, norm, "untargeted"), []), eps_texts, tones)
        for (model, norm), rows in group_rows(shown, "model", "norm").items()
        if any(row["status"] == "ok" and row["eps"] > 0 for row in rows)
    ]


def build_query_charts(queries: pd.DataFrame) -> list[Chart]:
    """Build a chart for each model, norm and eps with untargeted attacks at several budgets.

    Args:
        queries: The rows of queries.csv.

    Returns:
        The charts, in the order of the table.
    """
    known = [
        row for row in to_rows(queries) if row["status"] == "ok" and row["goal"] == "untargeted"
    ]
    tones = {attack: k for k, attack in enumerate(dict.fromkeys(row["attack"] for row in known))}
    charts = []
    for (model, norm, eps), rows in group_rows(known, "model", "norm", "eps_text").items():
        budgets = sorted({int(row["budget"]) for row in rows})
        if len(budgets) < 2:
            continue
        span = math.log(budgets[-1] / budgets[0])
        places = {float(budget): _x(math.log(budget / budgets[0]), span) for budget in budgets}
        attacks = group_rows(rows, "attack")
        lines = []
        for (attack,), cells in attacks.items():
            by_budget = {float(row["budget"]): row for row in cells}
            lines.append(
                _line(str(attack), _curve_style(tones[attack]), by_budget, by_budget, places)
            )
        n = int(rows[0]["n"])
        charts.append(
            Chart(
                title=f"{format_text(model)}, {format_norm(norm)}, eps {format_text(eps)}, n = {n}",
                axis="queries (logarithmic)",
                points=["1 query" if budget == 1 else f"{budget} queries" for budget in budgets],
                places=[*places.values()],
                labels=_place_labels([*places.values()], [str(budget) for budget in budgets]),
                levels=_levels(),
                lines=_join_equal(lines),
                faded=len(attacks) >= MANY_CURVES,
            )
        )
    return charts


def _is_charted(row: Row) -> bool:
    return bool(row["goal"] == "untargeted" and row["status"] != "skipped")


def _chart(
    rows: list[Row],
    worst: list[Row],
    eps_texts: Mapping[float, str],
    tones: Mapping[tuple[str, str], int],
) -> Chart:
    ladder = sorted({0.0, *(float(row["eps"]) for row in rows)})
    places = {eps: _x(eps, ladder[-1]) for eps in ladder}
    done = next(row for row in rows if row["status"] == "ok")
    before = metrics.rate(int(done["clean_correct"]), int(done["n"]))
    clean = {"n": before.n, "robust_correct": before.k,
             "robust_low": before.low, "robust_high": before.high}  # fmt: skip
    attacks = group_rows(rows, "attack")
    curves = [
        (str(attack), _curve_style(tones[done["norm"], attack]), cells)
        for (attack,), cells in attacks.items()
    ]
    if len(attacks) > 1 and worst:  # unknown if the run's records are missing
        curves.append((WORST_CASE, "worst", worst))
    lines = []
    for label, style, cells in curves:
        own = {float(row["eps"]) for row in cells}
        there = {float(row["eps"]): row for row in cells if row.get("status", "ok") == "ok"}
        there.setdefault(0.0, clean)
        # No line across an eps at which only other attacks ran: it would suggest a value there.
        before_first = {eps for eps in ladder if 0 < eps < min(own - {0.0}, default=0.0)}
        lines.append(_line(label, style, there, own | before_first, places))
    model, norm = format_text(done["model"]), format_norm(done["norm"])
    ticks = [eps_texts.get(eps, CLEAN) for eps in ladder]
    return Chart(
        title=f"{model}, {norm}, n = {int(done['n'])}",
        axis=f"eps ({norm})",
        points=[f"eps {tick}" for tick in ticks],
        places=[*places.values()],
        labels=_place_labels([*places.values()], ticks),
        levels=_levels(),
        lines=_join_equal(lines),
        faded=len(attacks) >= MANY_CURVES,
    )


def _join_equal(lines: Sequence[ChartLine]) -> list[ChartLine]:
    """Join attacks with equal values at every point, which would hide each other."""
    joined: dict[tuple[str, ...], ChartLine] = {}
    for line in lines:
        # The worst case is drawn below the attacks, so that it hides none.
        key = (*line.values, WORST_CASE if line.style == "worst" else "")
        same = joined.setdefault(key, line)
        if same is not line:
            joined[key] = same._replace(label=f"{same.label} = {line.label}")
    return list(joined.values())


def _curve_style(tone: int) -> str:
    dashed = " dashed" if tone // TONES % 2 else ""
    return f"tone{tone % TONES}{dashed}"


def _levels() -> list[tuple[float, str]]:
    return [(_y(share), f"{100 * share:.0f} %") for share in (0, 0.25, 0.5, 0.75, 1)]


def _line(
    label: str,
    style: str,
    there: Mapping[float, Row],
    own: Collection[float],
    places: Mapping[float, float],
) -> ChartLine:
    """Lay out a curve through the rows `there`, interrupted at the other points of its `own`."""
    runs: list[list[tuple[float, float, float, float]]] = [[]]
    for point, x in places.items():
        if point in there:
            runs[-1].append(_point(there[point], x))
        elif point in own:
            runs.append([])
    return ChartLine(
        label=format_text(label),
        style=style,
        path=" ".join(_svg_path([(x, y) for x, y, _, _ in run]) for run in runs if run),
        band=" ".join(
            _svg_path([(x, top) for x, _, _, top in run] + [(x, low) for x, _, low, _ in run[::-1]])
            + "Z"
            for run in runs
            if len(run) > 1
        ),
        bars=" ".join(
            f"M{run[0][0]:g},{run[0][3]:g}V{run[0][2]:g}" for run in runs if len(run) == 1
        ),
        marks=[(x, y) for run in runs for x, y, _, _ in run],
        values=[_value_text(there.get(point)) for point in places],
    )


def _point(row: Row, x: float) -> tuple[float, float, float, float]:
    """Return x, and y of the rate and of both ends of its interval."""
    share = row["robust_correct"] / row["n"]
    return x, _y(share), _y(row["robust_low"]), _y(row["robust_high"])


def _value_text(row: Row | None) -> str:
    if row is None:
        return DASH
    k, n = row["robust_correct"], row["n"]
    phrase = accuracy_view.describe_certified(row)
    counts = f"{format_count(k, n)}; {phrase}" if phrase else format_count(k, n)
    return f"{format_rate(k, n, row['robust_low'], row['robust_high'])} ({counts})"


def _svg_path(points: list[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g},{y:g}" for x, y in points)


def _x(eps: float, largest: float) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * eps / largest, 1)


def _y(share: Any) -> float:
    return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - float(share)), 1)


def _place_labels(places: Sequence[float], texts: Sequence[str]) -> list[tuple[float, str]]:
    """Select both ends, and between them each label far enough from its neighbours.

    The last label is moved to the left where it would be cut off by the edge of the chart.
    """
    room = max(LABEL_ROOM, max(map(_width, texts)) + LETTER)
    last = min(places[-1], WIDTH - _width(texts[-1]) / 2)
    selected = [0]
    for k in range(1, len(places) - 1):
        if places[k] - places[selected[-1]] >= room and last - places[k] >= room:
            selected.append(k)
    return [*((places[k], texts[k]) for k in selected), (last, texts[-1])]


def _width(text: str) -> float:
    return LETTER * len(text)
