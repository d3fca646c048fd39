"""Pivot the cells of a run for its page: attacks by eps, with clean accuracy and worst case."""

from collections.abc import Mapping, Sequence

from bench.analysis.results import RunResults
from bench.reporting.formats.numbers import (
    format_eps,
    format_norm,
    format_rate,
    format_text,
    map_eps_texts,
)
from bench.reporting.report import accuracy_view
from bench.reporting.report.views import Footnotes, Row, View, group_rows, to_rows
from bench.reporting.site import table_notes
from bench.suite.labels import WORST_CASE

EQUAL = " = "
"""Between attacks whose lines are equal."""


def pivot_attacks(found: RunResults) -> list[View]:
    """Pivot attacks by eps: robust accuracy, or success rate if targeted.

    Args:
        found: The results of a run.

    Returns:
        One view per model, norm and goal; attacks with equal lines share one.
    """
    eps_texts = map_eps_texts(found.table)
    keys = ("model", "norm", "goal")
    worst = group_rows(to_rows(found.worst), *keys)
    return [
        _pivot(rows, worst.get(place, []), eps_texts)
        for place, rows in group_rows(to_rows(found.table), *keys).items()
    ]


def _pivot(rows: Sequence[Row], worst: Sequence[Row], eps_texts: Mapping[float, str]) -> View:
    first, notes = rows[0], Footnotes()
    targeted = first["goal"] == "targeted"
    done = next((row for row in rows if row["status"] == "ok"), None)
    ladder = sorted({float(row["eps"]) for row in rows if row["eps"] > 0})
    clean = "" if done is None or targeted else _format(table_notes.without_attack(done))
    lines: dict[tuple[str, ...], list[str]] = {}
    for (attack,), cells in group_rows(rows, "attack").items():
        there = {float(row["eps"]): accuracy_view.format_outcome(row, notes) for row in cells}
        texts = tuple(there.get(eps, "") for eps in ladder)
        lines.setdefault(texts, []).append(format_text(attack))
    body = [[EQUAL.join(attacks), clean, *texts] for texts, attacks in lines.items()]
    together = {float(row["eps"]): _format(row) for row in worst}
    if len({row["attack"] for row in rows}) > 1 and together and not targeted:
        body.append([WORST_CASE, clean, *(together.get(eps, "") for eps in ladder)])
    known = "" if done is None else f", {table_notes.format_clean_accuracy(done)}"
    size = "" if done is None else f", n = {int(done['n'])}"
    what = f"success rate{known}" if targeted else "robust accuracy"
    place = f"{format_norm(first['norm'])}, {format_text(first['goal'])}{size}"
    columns = ["attack", table_notes.CLEAN, *(f"eps {format_eps(e, eps_texts)}" for e in ladder)]
    if targeted:
        columns, body = _drop_clean(columns), [_drop_clean(line) for line in body]
    return View(f"{format_text(first['model'])}, {place}: {what}", columns, body, notes.texts)


def _drop_clean(texts: list[str]) -> list[str]:
    """Leave the clean accuracy, which is no success rate, to the caption."""
    return [texts[0], *texts[2:]]


def _format(row: Row) -> str:
    return format_rate(row["robust_correct"], row["n"], row["robust_low"], row["robust_high"])
