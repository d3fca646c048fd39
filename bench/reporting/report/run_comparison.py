"""Two runs compared → what is printed and kept of it: views, compare.md, tables, a plot."""

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
from bench.reporting.plots import dumbbell, figures
from bench.reporting.report.views import Row, View, group_rows, to_rows

IDS_SHOWN = 10
"""Ids of examples that are shown of a cell; changed.csv has them all."""


def summarize_changes(compared: RunComparison) -> str:
    """How many cells are worse, better and neither beyond chance."""
    beyond = compared.table[compared.table["p_corrected"] <= SIGNIFICANCE_LEVEL]
    worse = int((beyond["only_first"] > beyond["only_second"]).sum())
    total = len(compared.table)
    return (
        f"{format_plural(total, 'comparison')} on the same examples: in {SECOND} robust on fewer "
        f"examples beyond chance in {worse}, on more in {len(beyond) - worse}, neither in "
        f"{total - len(beyond)} (5 %, corrected for all {total})."
    )


def tabulate_changes(compared: RunComparison, brief: bool = False) -> View:
    """A line per shared cell; `brief` leaves out the intervals and what all cells share."""
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
    """What a brief view leaves out: what all cells share, and how far the intervals reach."""
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
    return (
        f"{', '.join([*shared, 'robust accuracy'])}, 95 % intervals within {100 * reach:.1f} points"
    )


def _single(values: Iterable[Any]) -> list[Any]:
    """The only value, as a list of one; nothing where there are several."""
    found = [value for value in dict.fromkeys(values) if value != ""]
    return found if len(found) == 1 else []


def _rate(row: Row, side: str, brief: bool) -> str:
    ends = (None, None) if brief else (row[f"{side}_low"], row[f"{side}_high"])
    return format_rate(row[f"{side}_robust"], row["n"], *ends)


def list_changed_examples(compared: RunComparison) -> View | None:
    """Which examples changed, cell by cell; None where none did."""
    lines = []
    for place, rows in group_rows(to_rows(compared.changed), *KEY).items():
        model, attack, norm, *_ = place
        ids = [
            [row["example"] for row in rows if row["change"] == change]
            for change in ("lost", "gained")
        ]
        told = [
            ", ".join(map(str, some[:IDS_SHOWN])) + (", ..." if len(some) > IDS_SHOWN else "")
            for some in ids
        ]
        eps = format_text(rows[0]["eps_text"])
        lines.append([format_text(model), format_text(attack), format_norm(norm), eps, *told])
    columns = ["model", "attack", "norm", "eps", f"robust in {FIRST} alone", f"in {SECOND} alone"]
    return View("", columns, lines) if lines else None


def write_comparison(compared: RunComparison, folder: Path, first: str, second: str) -> list[Path]:
    """Write compare.csv, changed.csv, compare.md and the plot; gives their paths.

    Raises: SuiteError if the folder cannot be written.
    """
    plot = dumbbell.plot_dumbbell(compared.table, f"{FIRST}: {first}", f"{SECOND}: {second}")
    tables = {"compare.csv": compared.table, "changed.csv": compared.changed}
    return [
        *(write_atomic(folder / name, exports.to_csv(frame)) for name, frame in tables.items()),
        *figures.save_figure(plot, folder / "dumbbell"),
        write_atomic(folder / "compare.md", _page(compared, first, second).encode()),
    ]


def _page(compared: RunComparison, first: str, second: str) -> str:
    shown, changed = tabulate_changes(compared), list_changed_examples(compared)
    parts = [
        f"# {markdown.escape(first)} ({FIRST}) beside {markdown.escape(second)} ({SECOND})",
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
