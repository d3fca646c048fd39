"""Two runs compared → what is printed and kept of it: views, compare.md, tables, a plot."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.analysis.compare_runs import FIRST, KEY, SECOND, RunComparison
from bench.core.files import write_atomic
from bench.evaluation.metrics import SIGNIFICANT
from bench.reporting.formats import csv, many, markdown, number, rate, words
from bench.reporting.plots import dumbbell, figures
from bench.reporting.report.views import Row, View, groups, norm_name, records

SHOWN = 10
"""Ids of examples that are shown of a cell; changed.csv has them all."""


def summary(compared: RunComparison) -> str:
    """How many cells are worse, better and neither beyond chance."""
    beyond = compared.table[compared.table["p_corrected"] <= SIGNIFICANT]
    worse = int((beyond["only_first"] > beyond["only_second"]).sum())
    total = len(compared.table)
    return (
        f"{many(total, 'comparison')} on the same examples: in {SECOND} robust on fewer "
        f"examples beyond chance in {worse}, on more in {len(beyond) - worse}, neither in "
        f"{total - len(beyond)} (5 %, corrected for all {total})."
    )


def view(compared: RunComparison, brief: bool = False) -> View:
    """A line per shared cell; `brief` leaves out the intervals and what all cells share."""
    rows = records(compared.table)
    lines = [
        {
            "model": words(row["model"]),
            "attack": words(row["attack"]),
            "norm": norm_name(row["norm"]) if row["norm"] else "",
            "eps": words(row["eps_text"]),
            "n": str(row["n"]),
            f"robust, {FIRST}": _rate(row, "first", brief),
            f"robust, {SECOND}": _rate(row, "second", brief),
            f"{FIRST} alone": str(row["only_first"]),
            f"{SECOND} alone": str(row["only_second"]),
            "p": number(row["p_corrected"], 2),
        }
        for row in rows
    ]
    said = [name for name in ("model", "norm", "n") if _single(line[name] for line in lines)]
    columns = [name for name in lines[0] if not brief or name not in said]
    return View("", columns, [[line[name] for name in columns] for line in lines])


def heading(compared: RunComparison) -> str:
    """What a brief view leaves out: what all cells share, and how far the intervals reach."""
    table = compared.table
    shared = [words(text) for text in _single(table["model"])]
    shared += [norm_name(norm) for norm in _single(table["norm"])]
    shared += [f"n = {n}" for n in _single(table["n"])]
    reach = max(
        abs(row[f"{side}_{end}"] - row[f"{side}_robust"] / row["n"])
        for row in records(table)
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
    return rate(row[f"{side}_robust"], row["n"], *ends)


def flipped(compared: RunComparison) -> View | None:
    """Which examples changed, cell by cell; None where none did."""
    lines = []
    for place, rows in groups(records(compared.changed), *KEY).items():
        model, attack, norm, *_ = place
        ids = [
            [row["example"] for row in rows if row["change"] == change]
            for change in ("lost", "gained")
        ]
        told = [
            ", ".join(map(str, some[:SHOWN])) + (", ..." if len(some) > SHOWN else "")
            for some in ids
        ]
        eps = words(rows[0]["eps_text"])
        lines.append([words(model), words(attack), norm_name(norm), eps, *told])
    columns = ["model", "attack", "norm", "eps", f"robust in {FIRST} alone", f"in {SECOND} alone"]
    return View("", columns, lines) if lines else None


def write(compared: RunComparison, folder: Path, first: str, second: str) -> list[Path]:
    """Write compare.csv, changed.csv, compare.md and the plot; gives their paths.

    Raises: SuiteError if the folder cannot be written.
    """
    plot = dumbbell.figure(compared.table, f"{FIRST}: {first}", f"{SECOND}: {second}")
    tables = {"compare.csv": compared.table, "changed.csv": compared.changed}
    return [
        *(write_atomic(folder / name, csv.content(frame)) for name, frame in tables.items()),
        *figures.save(plot, folder / "dumbbell"),
        write_atomic(folder / "compare.md", _page(compared, first, second).encode()),
    ]


def _page(compared: RunComparison, first: str, second: str) -> str:
    shown, changed = view(compared), flipped(compared)
    parts = [
        f"# {markdown.escape(first)} ({FIRST}) beside {markdown.escape(second)} ({SECOND})",
        markdown.escape(summary(compared)),
        _list("What else differs", compared.notes),
        "## Robust accuracy",
        "![Robust accuracy of both runs, cell by cell](dumbbell.png)",
        markdown.table(shown.frame),
        *(["## Examples that changed", markdown.table(changed.frame)] if changed else []),
        _list("Not compared", compared.apart),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _list(title: str, sentences: list[str]) -> str:
    if not sentences:
        return ""
    return "\n".join([f"## {title}", "", *(f"- {markdown.escape(text)}" for text in sentences)])
