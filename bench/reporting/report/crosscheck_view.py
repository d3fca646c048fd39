"""Tabulate cross-checks: two implementations of one attack, compared example by example."""

import shlex
from collections.abc import Mapping, Sequence
from statistics import median

import pandas as pd

from bench.analysis.cell_names import format_cell_name
from bench.analysis.crosscheck import MissingComparison
from bench.analysis.explanations import Explanation
from bench.reporting.formats.numbers import (
    DASH,
    format_count,
    format_eps,
    format_factor,
    format_norm,
    format_number,
    format_percent,
    format_plural,
    format_rate,
    format_text,
    format_whole,
    is_missing,
)
from bench.reporting.report.views import Row, View, group_rows, to_rows

VERDICTS = ("identical", "equal within noise", "different")


def summarize_verdicts(crosschecks: pd.DataFrame, missing: Sequence[MissingComparison] = ()) -> str:
    """Count the comparisons by verdict, in a sentence; name the pairs without a comparison.

    Args:
        crosschecks: The rows of crosscheck.csv.
        missing: Cross-checks that could not be made.

    Returns:
        One or two sentences.
    """
    made = _count_verdicts(crosschecks)
    if not missing:
        return made or "No cross-check was asked for."
    return " ".join(filter(None, [made, *describe_missing(missing)]))


def describe_missing(missing: Sequence[MissingComparison]) -> list[str]:
    """Say which cross-checks could not be made, and why.

    Args:
        missing: Cross-checks without a comparison.

    Returns:
        One sentence per reason.
    """
    by_reason: dict[tuple[str, str], list[str]] = {}
    for each in missing:
        pairs = by_reason.setdefault((each.model, each.reason), [])
        pairs.append(f"{format_text(each.ours)} and {format_text(each.reference)}")
    return [
        f"Not compared on {format_text(model)}: {'; '.join(dict.fromkeys(pairs))}: "
        f"{format_text(reason)}."
        for (model, reason), pairs in by_reason.items()
    ]


def _count_verdicts(crosschecks: pd.DataFrame) -> str:
    """Count the comparisons by verdict; empty without any."""
    rows = to_rows(crosschecks)
    if not rows:
        return ""
    verdicts = [row["verdict"] for row in rows]
    parts = [
        f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys([*VERDICTS, *verdicts])
    ]
    pairs = len(group_rows(rows, "model", "ours", "reference", "norm"))
    compared = (
        f"{format_plural(len(rows), 'comparison')} of {format_plural(pairs, 'pair')} of attacks"
    )
    return f"{compared}: {', '.join(parts)}."


def tabulate_pairs(crosschecks: pd.DataFrame) -> View | None:
    """Tabulate the verdicts, differing examples and time ratio of each pair of attacks.

    Args:
        crosschecks: The rows of crosscheck.csv.

    Returns:
        One line per pair, or None without cross-checks.
    """
    lines = []
    keys = ("model", "ours", "reference", "norm")
    for (model, ours, reference, norm), rows in group_rows(to_rows(crosschecks), *keys).items():
        verdicts = [row["verdict"] for row in rows]
        differ = sum(0 if is_missing(row["differ"]) else row["differ"] for row in rows)
        compared = sum(0 if is_missing(row["n"]) else row["n"] for row in rows)
        times = [float(row["time_ratio"]) for row in rows if not is_missing(row["time_ratio"])]
        lines.append(
            [format_text(model), format_text(ours), format_text(reference), format_norm(norm),
             str(len(rows)),
             *(str(verdicts.count(verdict)) for verdict in VERDICTS),
             format_count(differ, compared),
             format_factor(median(times)) if times else DASH]
        )  # fmt: skip
    columns = ["model", "ours", "reference", "norm", "eps values", *VERDICTS]
    columns += ["examples that differ", "time, ours / reference (median)"]
    return View("", columns, lines) if lines else None


def tabulate_pair_details(crosschecks: pd.DataFrame, eps_texts: Mapping[float, str]) -> list[View]:
    """Tabulate each pair eps by eps: which examples differ, by how much, and why.

    Args:
        crosschecks: The rows of crosscheck.csv.
        eps_texts: Text of each eps, from `map_eps_texts`.

    Returns:
        One view per pair of attacks on a model in a norm.
    """
    keys = ("model", "ours", "reference", "norm")
    columns = [
        "eps", "verdict", "cause", "differ", "robust, ours", "robust, reference", "only ours broke",
        "only reference broke", "p", "largest pixel difference", "equal pixels", "images compared",
        "time, ours / reference", "examples",
    ]  # fmt: skip
    return [
        View(
            f"{format_text(model)}: {format_text(ours)} against {format_text(reference)}, "
            f"{format_norm(norm)}",
            columns,
            [_crosscheck_line(row, eps_texts) for row in rows],
        )
        for (model, ours, reference, norm), rows in group_rows(to_rows(crosschecks), *keys).items()
    ]


def _crosscheck_line(row: Row, eps_texts: Mapping[float, str]) -> list[str]:
    sides = [
        format_rate(
            row[f"{side}_robust_correct"], row["n"], row[f"{side}_low"], row[f"{side}_high"]
        )
        for side in ("ours", "reference")
    ]
    broke = [format_whole(row[f"only_{side}_broke"]) for side in ("ours", "reference")]
    return [
        format_eps(row["eps"], eps_texts), format_text(row["verdict"]), format_text(row["cause"]),
        format_count(row["differ"], row["n"]), *sides,
        *broke, format_number(row["p_value"], 2), format_number(row["largest_pixel_difference"], 2),
        format_percent(row.get("pixels_equal")),
        format_whole(row["pixels_compared"]), format_factor(row["time_ratio"]),
        format_text(row["differ_ids"]),
    ]  # fmt: skip


def list_explanations(found: Sequence[Explanation]) -> list[str]:
    """Format what experiments found about pairs of cells.

    Args:
        found: The results of `bench explain`.

    Returns:
        A few sentences per result.
    """
    return [f"{each.gap} {each.cause}" for each in found]


def list_explain_commands(
    crosschecks: pd.DataFrame, found: Sequence[Explanation], eps_texts: Mapping[float, str]
) -> list[str]:
    """List the commands that explain differing pairs not yet explained.

    Each is for the eps at which its pair differs most, and runs in the run's folder.

    Args:
        crosschecks: The rows of crosscheck.csv.
        found: The results of `bench explain`.
        eps_texts: Text of each eps, from `map_eps_texts`.

    Returns:
        One shell command per pair.
    """
    asked = {(each.model, each.ours, each.reference) for each in found}
    commands = []
    keys = ("model", "ours", "reference")
    differing = [row for row in to_rows(crosschecks) if row["verdict"] == "different"]
    for (model, *pair), rows in group_rows(differing, *keys).items():
        if (model, *pair) not in asked:
            eps = format_eps(max(rows, key=lambda row: row["differ"])["eps"], eps_texts)
            cells = [format_cell_name(model, attack, eps) for attack in pair]
            commands.append(shlex.join(["bench", "explain", ".", *cells]))
    return commands
