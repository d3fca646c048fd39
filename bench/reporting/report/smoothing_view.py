"""Tabulate what randomised smoothing certified of smoothed classifiers."""

import pandas as pd

from bench.reporting.formats.numbers import (
    DASH,
    format_count,
    format_number,
    format_percent,
    format_rate,
    format_text,
    format_whole,
)
from bench.reporting.report.views import Footnotes, Row, View, group_rows, to_rows


def tabulate_smoothing(table: pd.DataFrame) -> list[View]:
    """Tabulate the certified accuracy of smoothed classifiers by radius.

    Args:
        table: The rows of smoothing.csv.

    Returns:
        One view for each list of radii; none if the suite smooths nothing.
    """
    by_radii: dict[tuple[str, ...], list[list[Row]]] = {}
    for rows in group_rows(to_rows(table), "model", "sigma").values():
        radii = tuple(format_text(row["radius_text"]) for row in rows)
        by_radii.setdefault(radii, []).append(rows)
    return [_tabulate(radii, groups) for radii, groups in by_radii.items()]


def _tabulate(radii: tuple[str, ...], groups: list[list[Row]]) -> View:
    """Tabulate classifiers with the same radii, one row each."""
    notes, lines = Footnotes(), []
    for rows in groups:
        first = rows[0]
        draws = f"{format_whole(first['n0'])} + {format_whole(first['draws'])}"
        line = [format_text(first["model"]), format_number(first["sigma"]), draws,
                format_number(first["alpha"])]  # fmt: skip
        if first["status"] != "ok":
            reason = notes.mark(f"{first['status']}: {format_text(first['reason'])}")
            lines.append([*line, *[f"{DASH} {reason}"] * (2 + len(radii))])
            continue
        line += [format_count(first[name], first["n"]) for name in ("correct", "abstained")]
        lines.append([*line, *(_format_certified(row) for row in rows)])
    columns = ["model", "sigma", "draws", "alpha", "correct", "abstained",
               *(f"radius > {radius}" for radius in radii)]  # fmt: skip
    return View("Certified accuracy by L2 radius.", columns, lines, notes.texts)


def _format_certified(row: Row) -> str:
    return format_rate(
        row["certified_correct"], row["n"], row["certified_low"], row["certified_high"]
    )


def describe_smoothing(table: pd.DataFrame) -> list[str]:
    """State, for the terminal, what was certified of each smoothed classifier.

    Args:
        table: The rows of smoothing.csv.

    Returns:
        One sentence per model and sigma with results.
    """
    done = [row for row in to_rows(table) if row["status"] == "ok"]
    sentences = []
    for rows in group_rows(done, "model", "sigma").values():
        first = rows[0]
        some = [row for row in rows if row["certified_correct"] > 0]
        certified = ", ".join(
            f"{format_percent(row['certified_accuracy'])} beyond {format_text(row['radius_text'])}"
            for row in rows[: len(some) + 1]  # and the first radius at which nothing is
        )
        sentences.append(
            f"{format_text(first['model'])}, smoothed with sigma {format_number(first['sigma'])}: "
            f"certified in L2 {certified}; {format_count(first['abstained'], first['n'])} abstained"
        )
    return sentences
