"""Format grids of cells as tables that fit a page."""

from collections.abc import Callable, Iterable, Sequence

import pandas as pd

from bench.reporting.formats.numbers import (
    DASH,
    format_interval,
    format_percent,
    format_rate,
    format_text,
    is_missing,
)
from bench.reporting.formats.tables import EPS, Bold, PaperTable, Span, SymbolText
from bench.reporting.report import accuracy_view
from bench.reporting.report.views import Footnotes, Row
from bench.reporting.site import table_notes
from bench.reporting.site.grids import TARGETED, Grid

MAX_COLUMNS, MAX_ROWS = 6, 20
"""Columns of numbers, and lines, that a page holds; larger tables are split. Clean accuracy counts
only beside attacks, whose headings are wider than those of eps."""


def tabulate_grid(
    grid: Grid,
    name: str,
    caption: SymbolText,
    describe: Callable[[Grid], Sequence[str]],
    source: Sequence[str],
) -> Iterable[PaperTable]:
    """Format a grid, in parts if a page cannot hold it.

    Args:
        grid: The cells.
        name: Name of the table.
        caption: Its caption.
        describe: A part of the grid -> sentences below it.
        source: How to reproduce the table, one line each.

    Yields:
        The tables, with equal names.
    """
    clean = [column for column in grid.columns if column == table_notes.CLEAN]
    rest = grid.columns[len(clean) :]
    most = MAX_COLUMNS if grid.by_eps else MAX_COLUMNS - len(clean)
    parts = [
        grid._replace(
            lines=grid.lines[at : at + MAX_ROWS],
            columns=[*clean, *rest[left : left + most]],
        )
        for at in range(0, len(grid.lines), MAX_ROWS)
        for left in range(0, len(rest), most)
    ]
    for k, part in enumerate(parts, 1):
        notes = Footnotes()
        body = [
            [format_text(line), *(_cell(part, line, column, notes) for column in part.columns)]
            for line in part.lines
        ]
        heads = [part.corner, *(_head(part, column) for column in part.columns)]
        which = f" Part {k} of {len(parts)}." if len(parts) > 1 else ""
        yield PaperTable(
            name=name,
            caption=SymbolText(caption, which),
            frame=pd.DataFrame(body, columns=pd.Index(heads, dtype=object), dtype=object),
            details=describe(part),
            notes=notes.texts,
            source=source,
            spans=[
                Span(part.span, 1 + len(clean), [*map(format_text, part.columns[len(clean) :])])
            ],
        )


def _head(grid: Grid, column: str) -> str:
    plain = not grid.by_eps or column == table_notes.CLEAN
    return format_text(column) if plain else SymbolText(EPS, f" {format_text(column)}")


def _cell(grid: Grid, line: str, column: str, notes: Footnotes) -> str:
    row = grid.cells.get((line, column))
    if row is None:
        return ""
    if row.get("status", "ok") != "ok":
        return f"{DASH} {notes.mark(f'''{row['status']}: {format_text(row['reason'])}''')}"
    text = _figure(row)
    remarks = [] if is_missing(row.get("remark")) else [str(row["remark"])]
    facts = (accuracy_view.describe_violations(row), accuracy_view.describe_certified(row))
    remarks += [fact for fact in facts if fact]
    if remarks:
        text = f"{text} {notes.mark('; '.join(remarks))}"
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
