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


def tabulate_references(frame: pd.DataFrame, eps_texts: Mapping[float, str]) -> list[View]:
    """Tabulate measured figures, reference figures and their differences, eps by eps.

    The caption states what all lines of a source share; the rest has columns.

    Args:
        frame: The rows of published.csv.
        eps_texts: Text of each eps, from `map_eps_texts`.

    Returns:
        One view per source.
    """
    found = []
    for (source,), rows in group_rows(to_rows(frame), "source").items():
        about = [_about(row) for row in rows]
        own = [key for key in about[0] if len({texts[key] for texts in about}) > 1]
        shared = ", ".join(text for key, text in about[0].items() if key not in (*own, "note"))
        note = "" if "note" in own or is_missing(rows[0]["note"]) else f"; {about[0]['note']}"
        caption = f"{format_text(source)}{': ' if shared else ''}{shared}{note}"
        notes, places = Footnotes(), _decimal_places(row["published"] for row in rows)
        lines = [
            [*(texts[key] for key in own), *_compare(row, eps_texts, notes, places)]
            for texts, row in zip(about, rows, strict=True)
        ]
        columns = ["eps", "measured", "count", "published", "measured - published"]
        columns += ["in the interval"]
        found.append(View(caption, [*own, *columns], lines, notes.texts))
    return found


def _about(row: Row) -> dict[str, str]:
    """Describe what a reference figure measures, as text by column."""
    return {
        "model": format_text(row["model"]),
        "attack": format_text(row["attack"]),
        "norm": format_norm(row["norm"]),
        "figure": format_text(row["figure"]).replace("_", " "),
        "note": format_text(row["note"]),
    }


def _compare(row: Row, eps_texts: Mapping[float, str], notes: Footnotes, places: int) -> list[str]:
    measured = format_percent(row["measured"])
    if not is_missing(row["low"]):
        measured = format_rate(row["k"], row["n"], row["low"], row["high"])
    elif not is_missing(row["reason"]):
        texts = format_text(row["reason"])
        texts = texts if row["status"] == "ok" else f"{row['status']}: {texts}"
        measured = f"{measured} {notes.mark(texts)}"
    inside = DASH if is_missing(row["inside"]) else "yes" if row["inside"] else "no"
    return [
        format_eps(row["eps"], eps_texts), measured, format_count(row["k"], row["n"]),
        format_percent(row["published"], places), format_points(row["difference_points"], places),
        inside,
    ]  # fmt: skip


def _decimal_places(shares: Iterable[float]) -> int:
    """Count the decimals, one to four, at which every share prints as its source gives it."""
    texts = [f"{100 * share:.4f}".rstrip("0") for share in shares]
    return max(1, *(len(text.partition(".")[2]) for text in texts))
