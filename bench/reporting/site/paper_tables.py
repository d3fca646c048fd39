"""Build the tables of a publication: attacks on one model against eps, and models at one eps.

In each column, bold marks the strongest attack (or the most robust model) and every other that
the exact paired test, corrected for all comparisons of the run, finds not significantly different.
If that is the whole column, nothing in it is bold.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from bench.core.files import slug
from bench.evaluation.metrics import SIGNIFICANCE_LEVEL
from bench.reporting.formats.numbers import (
    DASH,
    format_eps,
    format_interval,
    format_norm,
    format_percent,
    format_plural,
    format_rate,
    format_text,
    is_missing,
    map_eps_texts,
)
from bench.reporting.formats.tables import Bold, PaperTable
from bench.reporting.report.views import Footnotes, Row, group_rows, to_rows
from bench.reporting.site import summary_tables, table_notes
from bench.reporting.site.sources import PublishedRun
from bench.suite.labels import WORST_CASE

MAX_COLUMNS, MAX_ROWS = 6, 20
"""Columns of numbers, and lines, that a page holds; larger tables are split."""
TARGETED = "targeted"


class Grid(NamedTuple):
    """Cells of a run arranged in lines and columns."""

    corner: str
    """Heading of the first column: what the lines are."""
    lines: list[str]
    columns: list[str]
    cells: Mapping[tuple[str, str], Row]
    """Rows of table.csv by (line, column); some places are empty."""
    bold: set[tuple[str, str]]


class PairedTests(NamedTuple):
    """The corrected p-values of a run's comparisons."""

    p_values: Mapping[tuple[Any, ...], float]

    def differ(self, *place: Any) -> bool:
        """Check whether two sides differ significantly.

        Args:
            place: What was compared, on what, norm, goal, eps, and the pair.

        Returns:
            True if they do; False for a pair that was not tested.
        """
        return self.p_values.get(place, 1.0) <= SIGNIFICANCE_LEVEL


def build_tables(runs: Sequence[PublishedRun]) -> list[PaperTable]:
    """Build the tables of all runs, in the order of the runs and of their suites.

    Args:
        runs: The runs, in order of publication.

    Returns:
        The tables, with unique names.
    """
    taken: set[str] = set()
    return [_with_unique_name(table, taken) for run in runs for table in _build_run_tables(run)]


def _build_run_tables(run: PublishedRun) -> Iterable[PaperTable]:
    """Build the tables of one run.

    Per norm and goal a table of attacks for each model and of models for each eps; then the unions
    of threat models and the worst classes.
    """
    eps_texts, tests = map_eps_texts(run.found.table), _tests(run.found.comparisons)
    planned = [row for row in to_rows(run.found.table) if row["eps"] > 0]
    together = [row for row in to_rows(run.found.worst) if row["eps"] > 0]
    for (norm, goal), rows in group_rows(planned, "norm", "goal").items():
        joined = [row for row in together if (row["norm"], row["goal"]) == (norm, goal)]
        models = group_rows(rows, "model")
        for (model,), own in models.items():
            worst = [row for row in joined if row["model"] == model]
            yield from _split(run, own, _attacks(own, worst, eps_texts, tests))
        if goal == TARGETED or len(models) == 1:
            continue
        for (eps,), own in group_rows(rows, "eps").items():
            worst = [row for row in joined if row["eps"] == eps]
            yield from _split(run, own, _models(own, worst, tests))
    yield from summary_tables.build_union_tables(run)
    yield from summary_tables.build_class_tables(run)


def _tests(comparisons: pd.DataFrame) -> PairedTests:
    places = {}
    for row in to_rows(comparisons):
        shared = row["model"] if row["compared"] == "attacks" else row["attack"]
        pair = frozenset((row["first"], row["second"]))
        place = (row["compared"], shared, row["norm"], row["goal"], float(row["eps"]), pair)
        places[place] = float(row["p_corrected"])
    return PairedTests(places)


# ------------------------------------------------------------------------------------------- grids


def _attacks(
    rows: Sequence[Row], worst: Sequence[Row], eps_texts: Mapping[float, str], tests: PairedTests
) -> Grid:
    """Arrange one model: a line per attack and the worst case, a column per eps."""
    columns = {
        eps: format_eps(eps, eps_texts) for eps in sorted({float(row["eps"]) for row in rows})
    }
    cells = {(str(row["attack"]), columns[float(row["eps"])]): row for row in rows}
    bold: set[tuple[str, str]] = set()
    for eps, column in columns.items():
        there = [row for row in rows if row["eps"] == eps and row["status"] == "ok"]

        def same(a: Row, b: Row, eps: float = eps) -> bool:
            pair = frozenset((a["attack"], b["attack"]))
            return not tests.differ("attacks", a["model"], a["norm"], a["goal"], eps, pair)

        bold |= {(str(row["attack"]), column) for row in _best(there, _strength, same)}
    lines = list(dict.fromkeys(str(row["attack"]) for row in rows))
    if len(lines) > 1 and worst and worst[0]["goal"] != TARGETED:
        lines.append(WORST_CASE)
        cells |= {(WORST_CASE, columns[float(row["eps"])]): row for row in worst}
    return Grid("attack", lines, list(columns.values()), cells, bold)


def _models(rows: Sequence[Row], worst: Sequence[Row], tests: PairedTests) -> Grid:
    """Arrange one eps: a line per model, a column for clean, each attack and the worst case."""
    lines = list(dict.fromkeys(str(row["model"]) for row in rows))
    done = [row for row in rows if row["status"] == "ok"]
    attacks = list(dict.fromkeys(str(row["attack"]) for row in rows))
    cells: dict[tuple[str, str], Row] = {
        (str(row["model"]), str(row["attack"])): row for row in rows
    }
    cells |= {
        (str(row["model"]), table_notes.CLEAN): table_notes.without_attack(row)
        for row in reversed(done)
    }
    columns = [table_notes.CLEAN, *attacks]
    candidates = {attack: [row for row in done if row["attack"] == attack] for attack in attacks}
    if len(attacks) > 1 and worst:
        columns.append(WORST_CASE)
        cells |= {(str(row["model"]), WORST_CASE): row for row in worst}
        met = {line: {row["attack"] for row in done if row["model"] == line} for line in lines}
        # Models are tested over the attacks that both met; bold is valid only if those are all.
        candidates[WORST_CASE] = list(worst) if len(set(map(frozenset, met.values()))) == 1 else []
    bold: set[tuple[str, str]] = set()
    for attack, there in candidates.items():

        def same(a: Row, b: Row, attack: str = attack) -> bool:
            place = (attack, a["norm"], a["goal"], float(a["eps"]))
            pair = frozenset((a["model"], b["model"]))
            return not tests.differ("models", *place, pair)

        best = _best(there, lambda row: int(row["robust_correct"]), same)
        bold |= {(str(row["model"]), attack) for row in best}
    return Grid("model", lines, columns, cells, bold)


def _strength(row: Row) -> int:
    """Count the examples that an attack breaks or, if targeted, brings to the target."""
    return int(row["fooled"]) if row["goal"] == TARGETED else -int(row["robust_correct"])


def _best(
    rows: Sequence[Row], good: Callable[[Row], int], same: Callable[[Row, Row], bool]
) -> list[Row]:
    """Select the best row and those not significantly different; none if that is all of them."""
    if not rows:
        return []
    best = max(rows, key=good)
    found = [row for row in rows if row is best or same(best, row)]
    return found if len(found) < len(rows) else []


# ------------------------------------------------------------------------------------------ tables


def _split(run: PublishedRun, rows: Sequence[Row], grid: Grid) -> Iterable[PaperTable]:
    """Split a grid into tables that fit a page."""
    parts = [
        grid._replace(
            lines=grid.lines[at : at + MAX_ROWS], columns=grid.columns[left : left + MAX_COLUMNS]
        )
        for at in range(0, len(grid.lines), MAX_ROWS)
        for left in range(0, len(grid.columns), MAX_COLUMNS)
    ]
    for k, part in enumerate(parts, 1):
        table = _table(run, rows, part)
        which = f" Part {k} of {len(parts)}." if len(parts) > 1 else ""
        yield table._replace(caption=f"{table.caption}{which}")


def _table(run: PublishedRun, rows: Sequence[Row], grid: Grid) -> PaperTable:
    notes = Footnotes()
    first = rows[0]
    body = []
    for line in grid.lines:
        texts = [_cell(grid, line, column, notes) for column in grid.columns]
        body.append([format_text(line), *texts])
    by_model = grid.corner == "model"
    heads = [format_text(name) if by_model else f"eps {format_text(name)}" for name in grid.columns]
    stem = ["models", f"eps {first['eps_text']}"] if by_model else [str(first["model"])]
    goal = [TARGETED] if first["goal"] == TARGETED else []
    return PaperTable(
        name=slug("-".join([run.name, *stem, str(first["norm"]), *goal])),
        caption=_caption(run, rows, by_model),
        frame=pd.DataFrame([*body], columns=pd.Index([grid.corner, *heads]), dtype=object),
        details=table_notes.describe_table(
            run, rows, grid.columns if by_model else grid.lines, by_model
        ),
        notes=notes.texts,
        source=table_notes.describe_source(run),
    )


def _cell(grid: Grid, line: str, column: str, notes: Footnotes) -> str:
    row = grid.cells.get((line, column))
    if row is None:
        return ""
    if row.get("status", "ok") != "ok":
        return f"{DASH} {notes.mark(f'''{row['status']}: {format_text(row['reason'])}''')}"
    text = _figure(row)
    broken = row.get("violations")
    if not is_missing(broken) and broken:
        violations = f"{format_plural(int(broken), 'violation')}, each counted as a failed attack"
        text = f"{text} {notes.mark(violations)}"
    return Bold(text) if (line, column) in grid.bold else text


def _figure(row: Row) -> str:
    """Format in percent without the sign, which the caption states."""
    if row["goal"] == TARGETED:
        share = row["attack_success_rate"]
        ends = format_interval(row["success_low"], row["success_high"])
        text = DASH if is_missing(share) else f"{format_percent(share)} {ends}"
    else:
        text = format_rate(row["robust_correct"], row["n"], row["robust_low"], row["robust_high"])
    return text.replace(" %", "")


def _caption(run: PublishedRun, rows: Sequence[Row], by_model: bool) -> str:
    """State what the table shows: measure, model or eps, data, n, norm."""
    first = rows[0]
    done = next((row for row in rows if row["status"] == "ok"), None)
    size = f"n = {int(done['n'])}" if done else "no cell finished"
    place = f"{format_text(first['dataset'])}, {size}, {format_norm(first['norm'])}"
    if by_model:
        eps = format_text(first["eps_text"])
        return f"Robust accuracy in percent at eps {eps}, {format_text(first['goal'])} ({place})."
    what = "Attack success rate" if first["goal"] == TARGETED else "Robust accuracy"
    clean = f", {table_notes.format_clean_accuracy(done)}" if done else ""
    title = f"{what} of {format_text(first['model'])} in percent against eps"
    return f"{title}, {format_text(first['goal'])} ({place}{clean})."


def _with_unique_name(table: PaperTable, taken: set[str]) -> PaperTable:
    """Give the table a unique name."""
    names = (table.name if k == 1 else f"{table.name}-{k}" for k in range(1, len(taken) + 2))
    free = next(name for name in names if name not in taken)
    taken.add(free)
    return table._replace(name=free)
