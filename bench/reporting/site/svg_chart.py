"""Robust accuracy against eps as a drawing of numbers, for a page that reads them out.

A chart is laid out here, in the units of its view box, so that the page shows it without a script;
the script only moves the guide from eps to eps and puts the values there into the legend.
"""

from collections.abc import Mapping
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
from bench.reporting.report.views import Row, group_rows, to_rows

WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 38, 12, 10, 34
"""The view box, and the margins in it that hold the axes' texts."""
TONES = 8
"""Colours of the page; the line after the last takes the first again, dashed."""
MIN_FADED = 5
"""From so many attacks on, a band is shown only with the line that is pointed at."""
CLEAN = "0"
WORST = "worst case"


class ChartLine(NamedTuple):
    """One attack, or the worst case over all of them."""

    label: str
    look: str
    """Classes of the page's style: its tone, its dash, or "worst"."""
    path: str
    """Of an SVG path; it is cut where a cell has no number."""
    band: str
    """Likewise, closed, around the 95 % intervals."""
    marks: list[tuple[float, float]]
    values: list[str]
    """At each eps of the chart, as it is read: rate, interval and counts, or a dash."""


class Chart(NamedTuple):
    """All attacks of one norm on one model."""

    title: str
    norm: str
    eps: list[str]
    places: list[float]
    """x of each eps."""
    labelled: list[int]
    """Which eps have room for a label under the axis."""
    levels: list[tuple[float, str]]
    """y and text of the horizontal lines."""
    lines: list[ChartLine]
    faded: bool


def build_charts(table: pd.DataFrame, worst: pd.DataFrame) -> list[Chart]:
    """A chart for each model and norm that met untargeted attacks at some eps above 0.

    `table` is that of `tables.cells`, `worst` that of `tables.worst_case`. At eps 0 the ball holds
    the image alone, so a line starts at the clean accuracy.
    """
    names = map_eps_texts(table)
    shown = [row for row in to_rows(table) if _belongs(row)]
    together = group_rows(to_rows(worst), "model", "norm", "goal")
    tones = {
        (norm, attack): k
        for (norm,), rows in group_rows(shown, "norm").items()
        for k, attack in enumerate(dict.fromkeys(row["attack"] for row in rows))
    }
    return [
        _chart(rows, together.get((model, norm, "untargeted"), []), names, tones)
        for (model, norm), rows in group_rows(shown, "model", "norm").items()
        if any(row["status"] == "ok" and row["eps"] > 0 for row in rows)
    ]


def _belongs(row: Row) -> bool:
    return bool(row["goal"] == "untargeted" and row["status"] != "skipped")


def _chart(
    rows: list[Row],
    worst: list[Row],
    names: Mapping[float, str],
    tones: Mapping[tuple[str, str], int],
) -> Chart:
    ladder = sorted({0.0, *(float(row["eps"]) for row in rows)})
    places = [_x(eps, ladder[-1]) for eps in ladder]
    done = next(row for row in rows if row["status"] == "ok")
    before = metrics.rate(int(done["clean_correct"]), int(done["n"]))
    clean = {"n": before.n, "robust_correct": before.k,
             "robust_low": before.low, "robust_high": before.high}  # fmt: skip
    attacks = group_rows(rows, "attack")
    lines = [
        _line(str(attack), _look(tones[done["norm"], attack]), cells, ladder, clean)
        for (attack,), cells in attacks.items()
    ]
    if len(attacks) > 1 and worst:  # unknown where a run's records were not kept
        lines.append(_line(WORST, "worst", worst, ladder, clean))
    model, norm = format_text(done["model"]), format_norm(done["norm"])
    return Chart(
        title=f"{model}, {norm}, n = {int(done['n'])}",
        norm=norm,
        eps=[names.get(eps, CLEAN) for eps in ladder],
        places=places,
        labelled=_with_room(places),
        levels=[(_y(share), f"{100 * share:.0f} %") for share in (0, 0.25, 0.5, 0.75, 1)],
        lines=lines,
        faded=len(attacks) >= MIN_FADED,
    )


def _look(tone: int) -> str:
    dashed = " dashed" if tone // TONES % 2 else ""
    return f"tone{tone % TONES}{dashed}"


def _line(label: str, look: str, cells: list[Row], ladder: list[float], clean: Row) -> ChartLine:
    there = {float(row["eps"]): row for row in cells if row.get("status", "ok") == "ok"}
    own = {float(row["eps"]) for row in cells}
    # Not across an eps that others were asked at: the line would seem to say what it is there.
    if 0.0 not in own and ladder[1] in own:
        there[0.0] = clean
    runs: list[list[tuple[float, float, float, float]]] = [[]]
    for eps in ladder:
        if eps in there:
            runs[-1].append(_point(there[eps], _x(eps, ladder[-1])))
        elif eps in own:
            runs.append([])
    return ChartLine(
        label=format_text(label),
        look=look,
        path=" ".join(_drawn([(x, y) for x, y, _, _ in run]) for run in runs if run),
        band=" ".join(
            _drawn([(x, top) for x, _, _, top in run] + [(x, low) for x, _, low, _ in run[::-1]])
            + "Z"
            for run in runs
            if run
        ),
        marks=[(x, y) for run in runs for x, y, _, _ in run],
        values=[_told(there.get(eps)) for eps in ladder],
    )


def _point(row: Row, x: float) -> tuple[float, float, float, float]:
    """x, then y of the rate and of both ends of its interval."""
    share = row["robust_correct"] / row["n"]
    return x, _y(share), _y(row["robust_low"]), _y(row["robust_high"])


def _told(row: Row | None) -> str:
    if row is None:
        return DASH
    k, n = row["robust_correct"], row["n"]
    return f"{format_rate(k, n, row['robust_low'], row['robust_high'])} ({format_count(k, n)})"


def _drawn(points: list[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g},{y:g}" for x, y in points)


def _x(eps: float, largest: float) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * eps / largest, 1)


def _y(share: Any) -> float:
    return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - float(share)), 1)


def _with_room(places: list[float], least: float = 30) -> list[int]:
    """Both ends, and between them each that is far enough from its neighbours."""
    kept = [0]
    for k in range(1, len(places) - 1):
        if places[k] - places[kept[-1]] >= least and places[-1] - places[k] >= least:
            kept.append(k)
    return [*kept, len(places) - 1]
