"""Tabulate measured results beside reference figures of the literature."""

from collections.abc import Iterable, Mapping

import pandas as pd

from bench.reporting.formats.numbers import (
    DASH,
    format_count,
    format_eps,
    format_norm,
    format_percent,
    format_points,
    format_rate,
    format_text,
    is_missing,
)
from bench.reporting.report.views import Footnotes, Row, View, group_rows, to_rows


def tabulate_references(frame: pd.DataFrame, names: Mapping[float, str]) -> list[View]:
    """Per source, eps by eps: the measured figure, the published one and their difference.

    What all lines of a source share stands in the caption, the rest in columns of its own.
    """
    found = []
    for (source,), rows in group_rows(to_rows(frame), "source").items():
        about = [_about(row) for row in rows]
        own = [key for key in about[0] if len({told[key] for told in about}) > 1]
        shared = ", ".join(text for key, text in about[0].items() if key not in (*own, "note"))
        note = "" if "note" in own or is_missing(rows[0]["note"]) else f"; {about[0]['note']}"
        caption = f"{format_text(source)}{': ' if shared else ''}{shared}{note}"
        notes, places = Footnotes(), _decimal_places(row["published"] for row in rows)
        lines = [
            [*(told[key] for key in own), *_beside(row, names, notes, places)]
            for told, row in zip(about, rows, strict=True)
        ]
        columns = ["eps", "measured", "count", "published", "measured - published"]
        columns += ["in the interval"]
        found.append(View(caption, [*own, *columns], lines, notes.texts))
    return found


def _about(row: Row) -> dict[str, str]:
    """What a published value is one of, in words."""
    return {
        "model": format_text(row["model"]),
        "attack": format_text(row["attack"]),
        "norm": format_norm(row["norm"]),
        "figure": format_text(row["figure"]).replace("_", " "),
        "note": format_text(row["note"]),
    }


def _beside(row: Row, names: Mapping[float, str], notes: Footnotes, places: int) -> list[str]:
    measured = format_percent(row["measured"])
    if not is_missing(row["low"]):
        measured = format_rate(row["k"], row["n"], row["low"], row["high"])
    elif not is_missing(row["reason"]):
        told = format_text(row["reason"])
        told = told if row["status"] == "ok" else f"{row['status']}: {told}"
        measured = f"{measured} {notes.mark(told)}"
    inside = DASH if is_missing(row["inside"]) else "yes" if row["inside"] else "no"
    return [
        format_eps(row["eps"], names), measured, format_count(row["k"], row["n"]),
        format_percent(row["published"], places), format_points(row["difference_points"], places),
        inside,
    ]  # fmt: skip


def _decimal_places(shares: Iterable[float]) -> int:
    """The decimals that percents need to show each share as its source gives it; one to four."""
    texts = [f"{100 * share:.4f}".rstrip("0") for share in shares]
    return max(1, *(len(text.partition(".")[2]) for text in texts))
