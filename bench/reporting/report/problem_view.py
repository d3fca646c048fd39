"""Tabulate what went wrong in a run: violations, cells without a number, caveats."""

from collections.abc import Mapping, Sequence

import pandas as pd

from bench.reporting.formats.numbers import format_eps, format_norm, format_text, is_missing
from bench.reporting.report.views import Row, View, group_rows, to_rows


def list_violations(frame: pd.DataFrame, eps_texts: Mapping[float, str]) -> View | None:
    """Count the violations of each attack and show the first.

    Args:
        frame: The per-example records with a violation.
        eps_texts: Text of each eps, from `map_eps_texts`.

    Returns:
        One line per model, attack, norm and eps, or None without violations.
    """
    lines = []
    for (model, attack, norm, eps), rows in group_rows(
        to_rows(frame), "model", "attack", "norm", "eps"
    ).items():
        first = f"example {format_text(rows[0]['example'])}: {format_text(rows[0]['violation'])}"
        place = [
            format_text(model),
            format_text(attack),
            format_norm(norm),
            format_eps(eps, eps_texts),
        ]
        lines.append([*place, str(len(rows)), first])
    columns = ["model", "attack", "norm", "eps", "examples", "first violation"]
    return View("", columns, lines) if lines else None


def list_excluded_cells(table: pd.DataFrame, eps_texts: Mapping[float, str]) -> View | None:
    """List the cells without a number, with the reason.

    Args:
        table: The rows of table.csv.
        eps_texts: Text of each eps, from `map_eps_texts`.

    Returns:
        Failed cells, then skipped ones; None if every cell has a number.
    """
    bad = [row for row in to_rows(table) if row["status"] != "ok"]
    bad.sort(key=lambda row: str(row["status"]))  # "failed" before "skipped"
    keys = ("status", "model", "attack", "norm", "goal", "reason")
    lines = [
        [format_text(status), format_text(model), format_text(attack),
         format_norm(norm), format_text(goal),
         _eps_list(rows, eps_texts), format_text(reason)]
        for (status, model, attack, norm, goal, reason), rows in group_rows(bad, *keys).items()
    ]  # fmt: skip
    columns = ["status", "model", "attack", "norm", "goal", "eps", "reason"]
    return View("", columns, lines) if lines else None


def list_caveats(table: pd.DataFrame, eps_texts: Mapping[float, str]) -> View | None:
    """List the caveats of single cells; cells with the same caveat share a line.

    Args:
        table: The rows of table.csv.
        eps_texts: Text of each eps, from `map_eps_texts`.

    Returns:
        The view, or None without caveats.
    """
    rows = [row for row in to_rows(table) if not is_missing(row.get("caveats"))]
    places: dict[tuple[str, str, str, str], list[str]] = {}
    for (model, attack, norm, text), cells in group_rows(
        rows, "model", "attack", "norm", "caveats"
    ).items():
        eps = _eps_list(cells, eps_texts)
        key = format_text(model), format_norm(norm), eps, format_text(text)
        places.setdefault(key, []).append(format_text(attack))
    lines = [
        [model, ", ".join(attacks), norm, eps, text]
        for (model, norm, eps, text), attacks in places.items()
    ]
    return View("", ["model", "attack", "norm", "eps", "caveat"], lines) if lines else None


def _eps_list(rows: Sequence[Row], eps_texts: Mapping[float, str]) -> str:
    return ", ".join(
        format_eps(eps, eps_texts) for eps in sorted({float(row["eps"]) for row in rows})
    )
