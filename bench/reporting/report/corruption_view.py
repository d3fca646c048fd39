"""Tabulate errors under common corruptions: corruption by severity, and their means."""

from bench.analysis.corruptions import COMPLETE, CorruptionResults
from bench.engine.threats.corruption import SEVERITIES
from bench.evaluation import metrics
from bench.reporting.formats.numbers import (
    DASH,
    format_count,
    format_interval,
    format_number,
    format_percent,
    format_text,
    is_missing,
)
from bench.reporting.report.views import Row, View, group_rows, to_rows


def tabulate_corruptions(results: CorruptionResults) -> list[View]:
    """Tabulate the mean errors, then corruption by severity.

    Args:
        results: Errors and means of a run.

    Returns:
        One view of means, then one per model and attack; none without common corruptions.
    """
    if results.errors.empty:
        return []
    return [_tabulate_means(results), *_tabulate_errors(results)]


def _tabulate_means(results: CorruptionResults) -> View:
    baseline = str(results.means["baseline"].iloc[0])
    named = f"mCE, {format_text(baseline)} = 100 %" if baseline else "mCE (no baseline)"
    columns = ["model", "attack", "clean error", "mean corruption error, unnormalised", named]
    lines, notes = [], []
    for row in to_rows(results.means):
        mean = format_percent(row["mean_error"])
        if is_missing(row["mean_error"]):
            text = f"{row['cells']} of {COMPLETE} cells have a number: no mean over all of them"
            notes += [text] if text not in notes else []
            mean = f"{DASH} [{notes.index(text) + 1}]"
        lines.append(
            [format_text(row["model"]), format_text(row["attack"]),
             _format_error(row["clean_wrong"], row["n"]), mean,
             DASH if is_missing(row["mce"]) else format_percent(row["mce"])]
        )  # fmt: skip
    return View("Mean over 15 corruptions and 5 severities", columns, lines, notes)


def _tabulate_errors(results: CorruptionResults) -> list[View]:
    found = []
    for (model, attack), rows in group_rows(to_rows(results.errors), "model", "attack").items():
        columns = ["corruption", *(f"severity {severity}" for severity in SEVERITIES), "mean"]
        columns += ["of the baseline's"] if rows[0]["baseline"] else []
        caption = f"{format_text(model)}, {format_text(attack)}: error"
        found.append(View(caption, columns, [_format_row(row) for row in rows]))
    return found


def _format_row(row: Row) -> list[str]:
    cells = [_format_error(row[f"wrong_{severity}"], row["n"]) for severity in SEVERITIES]
    line = [format_text(row["corruption"]).replace("_", " "), *cells]
    line.append(DASH if is_missing(row["mean_error"]) else format_percent(row["mean_error"]))
    if row["baseline"]:
        ratio = row["corruption_error"]
        line.append(DASH if is_missing(ratio) else format_number(ratio))
    return line


def _format_error(wrong: object, n: object) -> str:
    if is_missing(wrong) or is_missing(n):
        return DASH
    rate = metrics.rate(int(str(wrong)), int(str(n)))
    share = format_percent(rate.value)
    return f"{share} ({format_count(rate.k, rate.n)}) {format_interval(rate.low, rate.high)}"
