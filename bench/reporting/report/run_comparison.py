"""Print and write the comparison of two runs: views, compare.md, tables and a plot."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.analysis.compare_runs import FIRST, KEY, SECOND, RunComparison
from bench.core.files import write_atomic
from bench.evaluation.metrics import SIGNIFICANCE_LEVEL
from bench.reporting.formats import exports, markdown
from bench.reporting.formats.numbers import (
    format_norm,
    format_number,
    format_plural,
    format_rate,
    format_text,
)
from bench.reporting.plots import dumbbell
from bench.reporting.plots.saving import save_figure
from bench.reporting.report.views import Row, View, group_rows, to_rows

IDS_SHOWN = 10
"""Example ids shown per cell; changed.csv lists all."""


def summarize_changes(compared: RunComparison) -> str:
    """Count the cells that are significantly worse, better, and neither.

    Args:
        compared: The comparison of both runs.

    Returns:
        One sentence.
    """
    beyond = compared.table[compared.table["p_corrected"] <= SIGNIFICANCE_LEVEL]
    worse = int((beyond["only_first"] > beyond["only_second"]).sum())
    total = len(compared.table)
    return (
        f"{format_plural(total, 'comparison')} on the same examples: {SECOND} is robust on "
        f"significantly fewer examples in {worse}, on more in {len(beyond) - worse}, neither in "
        f"{total - len(beyond)} (5 %, corrected for all {total})."
    )


def tabulate_changes(compared: RunComparison, brief: bool = False) -> View:
    """Tabulate the shared cells, one per line.

    Args:
        compared: The comparison of both runs.
        brief: Leave out the intervals and the columns with a single value.

    Returns:
        The view.
    """
    rows = to_rows(compared.table)
    lines = [
        {
            "model": format_text(row["model"]),
            "attack": format_text(row["attack"]),
            "norm": format_norm(row["norm"]) if row["norm"] else "",
            "eps": format_text(row["eps_text"]),
            "n": str(row["n"]),
            f"robust, {FIRST}": _rate(row, "first", brief),
            f"robust, {SECOND}": _rate(row, "second", brief),
            f"{FIRST} alone": str(row["only_first"]),
            f"{SECOND} alone": str(row["only_second"]),
            "p": format_number(row["p_corrected"], 2),
        }
        for row in rows
    ]
    said = [name for name in ("model", "norm", "n") if _single(line[name] for line in lines)]
    columns = [name for name in lines[0] if not brief or name not in said]
    return View("", columns, [[line[name] for name in columns] for line in lines])


def describe_shared(compared: RunComparison) -> str:
    """Describe what a brief view leaves out: shared values, and the widest interval.

    Args:
        compared: The comparison of both runs.

    Returns:
        One line.
    """
    table = compared.table
    shared = [format_text(text) for text in _single(table["model"])]
    shared += [format_norm(norm) for norm in _single(table["norm"])]
    shared += [f"n = {n}" for n in _single(table["n"])]
    reach = max(
        abs(row[f"{side}_{end}"] - row[f"{side}_robust"] / row["n"])
        for row in to_rows(table)
        for side in ("first", "second")
        for end in ("low", "high")
    )
    shared += ["robust accuracy", f"95 % intervals up to ± {100 * reach:.1f} points"]
    return ", ".join(shared)


def _single(values: Iterable[Any]) -> list[Any]:
    """Return the only value as a list of one; an empty list if there are several."""
    found = [value for value in dict.fromkeys(values) if value != ""]
    return found if len(found) == 1 else []


def _rate(row: Row, side: str, brief: bool) -> str:
    ends = (None, None) if brief else (row[f"{side}_low"], row[f"{side}_high"])
    return format_rate(row[f"{side}_robust"], row["n"], *ends)


def list_changed_examples(compared: RunComparison) -> View | None:
    """List the examples that are robust in only one run, cell by cell.

    Args:
        compared: The comparison of both runs.

    Returns:
        The view, or None if no example changed.
    """
    lines = []
    for place, rows in group_rows(to_rows(compared.changed), *KEY).items():
        model, attack, norm, *_ = place
        ids = [
            [row["example"] for row in rows if row["change"] == change]
            for change in ("lost", "gained")
        ]
        id_lists = [
            ", ".join(map(str, some[:IDS_SHOWN])) + (", ..." if len(some) > IDS_SHOWN else "")
            for some in ids
        ]
        eps = format_text(rows[0]["eps_text"])
        lines.append([format_text(model), format_text(attack), format_norm(norm), eps, *id_lists])
    columns = ["model", "attack", "norm", "eps", f"robust in {FIRST} alone", f"in {SECOND} alone"]
    return View("", columns, lines) if lines else None


def write_comparison(compared: RunComparison, folder: Path, first: str, second: str) -> list[Path]:
    """Write compare.csv, changed.csv, compare.md and the plot.

    Args:
        compared: The comparison of both runs.
        folder: Folder to write to.
        first: Name of the first run.
        second: Name of the second run.

    Returns:
        Paths of the written files.

    Raises:
        SuiteError: The folder cannot be written.
    """
    plot = dumbbell.plot_dumbbell(compared.table, f"{FIRST}: {first}", f"{SECOND}: {second}")
    tables = {"compare.csv": compared.table, "changed.csv": compared.changed}
    return [
        *(write_atomic(folder / name, exports.to_csv(frame)) for name, frame in tables.items()),
        *save_figure(plot, folder / "dumbbell"),
        write_atomic(folder / "compare.md", _page(compared, first, second).encode()),
    ]


def _page(compared: RunComparison, first: str, second: str) -> str:
    shown, changed = tabulate_changes(compared), list_changed_examples(compared)
    parts = [
        f"# {markdown.escape(first)} ({FIRST}) compared with {markdown.escape(second)} ({SECOND})",
        markdown.escape(summarize_changes(compared)),
        _list("What else differs", compared.notes),
        "## Robust accuracy",
        "![Robust accuracy of both runs, cell by cell](dumbbell.png)",
        markdown.render_table(shown.frame),
        *(["## Examples that changed", markdown.render_table(changed.frame)] if changed else []),
        _list("Not compared", compared.apart),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _list(title: str, sentences: list[str]) -> str:
    if not sentences:
        return ""
    return "\n".join([f"## {title}", "", *(f"- {markdown.escape(text)}" for text in sentences)])
