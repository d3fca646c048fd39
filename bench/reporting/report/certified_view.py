"""Tabulate certified results: the true robust accuracy lies between two counts of examples."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from bench.analysis.certified import METHODS, CertifiedResults
from bench.reporting.formats.numbers import (
    DASH,
    format_count,
    format_eps,
    format_norm,
    format_percent,
    format_plural,
    format_rate,
    format_text,
    is_missing,
)
from bench.reporting.report.views import Footnotes, Row, View, group_rows, to_rows


def format_method(method: object) -> str:
    """Format the name of a certification method.

    Args:
        method: Its key in the suite.

    Returns:
        Its display name.
    """
    return METHODS.get(str(method), str(method))


class CertifiedView(NamedTuple):
    """Everything that a report prints about the certified results of a run."""

    alarm: View | None
    """Certified examples that an attack has broken; None where there is none."""
    sentences: list[str]
    table: View


def build_certified_view(
    certified: CertifiedResults, worst: pd.DataFrame, eps_texts: Mapping[float, str]
) -> CertifiedView | None:
    """Build the section of the report on certified results.

    Args:
        certified: The certified results.
        worst: The rows of worst.csv.
        eps_texts: Text of each eps, from `map_eps_texts`.

    Returns:
        The section, or None if the suite certifies nothing.
    """
    if certified.table.empty:
        return None
    return CertifiedView(
        _alarm(certified.contradictions, eps_texts),
        describe_bounds(certified, worst),
        _table(certified),
    )


def select_best_methods(certified: CertifiedResults) -> list[Row]:
    """Select the method that certifies most examples, for each model, norm and eps.

    Args:
        certified: The certified results.

    Returns:
        One row of certified.csv per model, norm and eps; of equal rows the first.
    """
    rows = [row for row in to_rows(certified.table) if row["status"] == "ok"]
    found = group_rows(rows, "model", "norm", "eps").values()
    return [max(some, key=lambda row: int(row["certified_correct"])) for some in found]


def describe_bounds(certified: CertifiedResults, worst: pd.DataFrame) -> list[str]:
    """State lower and upper bound of robust accuracy for each model, norm and eps.

    Args:
        certified: The certified results.
        worst: The rows of worst.csv.

    Returns:
        One sentence per model, norm and eps.
    """
    untargeted = worst[worst["goal"] == "untargeted"]
    ran = {(row["model"], row["norm"], row["eps"]): row for row in to_rows(untargeted)}
    return [
        _sentence(row, ran.get((row["model"], row["norm"], row["eps"])))
        for row in select_best_methods(certified)
    ]


def _sentence(row: Row, worst: Row | None) -> str:
    low = _share(row["certified_accuracy"], row["certified_low"], row["certified_high"])
    method = format_method(row["method"])
    norm = "" if row["norm"] == "linf" else f"{format_norm(row['norm'])}, "
    where = f"{format_text(row['model'])}, {norm}eps {format_text(row['eps_text'])}"
    if worst is None:
        return f"{where}: at least {low} (certified, {method}) of examples are robust."
    high = _share(worst["robust_accuracy"], worst["robust_low"], worst["robust_high"])
    attacks = format_plural(int(worst["attacks"]), "attack")
    return (
        f"{where}: between {low} (certified, {method}) and {high} (worst case of {attacks}) of "
        "examples are robust."
    )


def describe_uncertified(table: pd.DataFrame) -> list[str]:
    """State, for the terminal, which models were not certified, and why.

    Args:
        table: The rows of certified.csv or smoothing.csv.

    Returns:
        One sentence per model and reason, with the methods.
    """
    rows = [row for row in to_rows(table) if row["status"] != "ok"]
    sentences = []
    for (model, reason), some in group_rows(rows, "model", "reason").items():
        methods = dict.fromkeys(
            format_method(row["method"]) if "method" in row else "smoothing" for row in some
        )
        why = "" if is_missing(reason) or not reason else f": {format_text(reason)}"
        sentences.append(f"{format_text(model)}: not certified by {', '.join(methods)}{why}")
    return sentences


def _share(value: float, low: float, high: float) -> str:
    return f"{format_percent(value)} [{100 * low:.1f}, {100 * high:.1f}]"


def _table(certified: CertifiedResults) -> View:
    """Tabulate, per model, norm and eps, certified, robust and undecided examples."""
    methods = list(dict.fromkeys(certified.table["method"]))
    norms = list(dict.fromkeys(certified.table["norm"]))
    notes, lines = Footnotes(), []
    groups = group_rows(to_rows(certified.table), "model", "norm", "eps")
    for (model, norm, _), rows in groups.items():
        by_method = {row["method"]: row for row in rows}
        done = [row for row in rows if row["status"] == "ok"]
        most = max(done, key=lambda row: int(row["certified_correct"]), default=None)
        left, open_ = (
            [DASH if most is None or is_missing(most[name]) else format_count(most[name], most["n"])
             for name in ("attacked_robust_correct", "undecided")]
        )  # fmt: skip
        lines.append(
            [format_text(model), *[format_norm(norm)] * (len(norms) > 1),
             format_text(rows[0]["eps_text"]),
             *(_cell(by_method.get(method), notes) for method in methods), left, open_]
        )  # fmt: skip
    first = ["model", *["norm"] * (len(norms) > 1), "eps"]
    columns = [*first, *(f"certified by {format_method(m)}" for m in methods)]
    return View("", [*columns, "robust under all attacks", "undecided"], lines, notes.texts)


def _cell(row: Row | None, notes: Footnotes) -> str:
    if row is None:  # the suite does not ask for this method in this norm
        return DASH
    if row["status"] != "ok":
        reason = f"{row['status']}: {format_text(row['reason'])}"
        return f"{DASH} {notes.mark(reason)}"
    return format_rate(
        row["certified_correct"], row["n"], row["certified_low"], row["certified_high"]
    )


def _alarm(contradictions: pd.DataFrame, eps_texts: Mapping[float, str]) -> View | None:
    lines = [
        [format_text(row["model"]), format_method(row["method"]),
         format_eps(row["eps"], eps_texts), format_text(row["example"]), format_text(row["attack"]),
         format_eps(row["attack_eps"], eps_texts)]
        for row in to_rows(contradictions)
    ]  # fmt: skip
    columns = ["model", "certified by", "at eps", "example", "broken by", "run at eps"]
    return View("", columns, lines) if lines else None


def describe_contradictions(contradictions: pd.DataFrame) -> Sequence[str]:
    """Describe, for the terminal, certified examples that an attack broke.

    Args:
        contradictions: The rows of contradictions.csv.

    Returns:
        One sentence per model, method, eps and attack.
    """
    return [
        f"{format_text(model)}: {format_method(method)} certified at eps {eps:g} "
        f"what {format_text(attack)} broke within it: {format_plural(len(rows), 'example')} "
        f"({', '.join(format_text(row['example']) for row in rows[:5])}"
        f"{', ...' if len(rows) > 5 else ''}); the bound or the verification is wrong"
        for (model, method, eps, attack), rows in group_rows(
            to_rows(contradictions), "model", "method", "eps", "attack"
        ).items()
    ]
