"""Build the tables of a publication on unions of threat models and on the worst classes."""

from collections.abc import Iterator, Sequence

from bench.core.files import slug
from bench.evaluation import metrics
from bench.reporting.formats.numbers import (
    format_norm,
    format_percent,
    format_rate,
    format_text,
    is_missing,
    map_eps_texts,
)
from bench.reporting.formats.tables import EPS, PaperTable, Symbol, SymbolText
from bench.reporting.report import class_view, union_view
from bench.reporting.report.views import Footnotes, Row, View, group_rows, to_rows
from bench.reporting.sentences import SENTENCES
from bench.reporting.site import table_notes
from bench.reporting.site.sources import PublishedRun

MAX_ROWS = 20
"""Lines that a page holds; larger tables are split."""
_CLASS_COLUMNS = ("model", EPS, "worst class", "robust accuracy", "best class", "spread")


def build_union_tables(run: PublishedRun) -> Iterator[PaperTable]:
    """Build a table of models for each union of threat models and goal.

    Args:
        run: The run.

    Yields:
        Tables with a line per model: threat models, clean and robust accuracy.
    """
    for (label, goal), rows in group_rows(to_rows(run.found.unions), "label", "goal").items():
        notes = Footnotes()
        lines = [
            [format_text(row["model"]), union_view.format_threats(row["threats"]), _clean(row),
             _to_plain(union_view.format_union(row, notes))]
            for row in rows
        ]  # fmt: skip
        place = f"{format_text(rows[0]['dataset'])}, {_size(rows)}"
        caption = f"Robust accuracy in percent to {format_text(label)}, {goal} ({place})."
        view = View(caption, ["model", "threat models", "clean", "robust"], lines, notes.texts)
        yield from _split(run, f"union-{label}-{goal}", view, SENTENCES["unions"])


def build_class_tables(run: PublishedRun) -> Iterator[PaperTable]:
    """Build a table of the worst classes of all models for each norm and goal.

    Args:
        run: The run.

    Yields:
        Tables with a line per model and eps.
    """
    worst = class_view.select_worst_classes(run.found.classes)
    for (norm, goal), rows in worst.groupby(["norm", "goal"], sort=False):
        view = class_view.tabulate_worst_classes(rows, map_eps_texts(run.found.table))
        places = [view.columns.index(name) for name in _CLASS_COLUMNS]
        lines = [[_to_plain(line[at]) for at in places] for line in view.rows]
        caption = SymbolText(
            "Robust accuracy in percent of the worst class, ", Symbol(format_norm(norm)),
            f", {goal} ({format_text(rows['dataset'].iloc[0])}).",
        )  # fmt: skip
        short = View(caption, list(_CLASS_COLUMNS), lines, view.notes)
        yield from _split(run, f"classes-{norm}-{goal}", short, SENTENCES["classes"])


def _split(run: PublishedRun, stem: str, view: View, detail: str) -> Iterator[PaperTable]:
    """Split a view into tables that fit a page."""
    parts = [view.rows[at : at + MAX_ROWS] for at in range(0, len(view.rows), MAX_ROWS)]
    for k, lines in enumerate(parts, 1):
        which = f" Part {k} of {len(parts)}." if len(parts) > 1 else ""
        yield PaperTable(
            name=slug(f"{run.name}-{stem}"),
            caption=SymbolText(view.caption, which),
            frame=view._replace(rows=lines).frame,
            details=[table_notes.INTERVALS, detail],
            notes=view.notes,
            source=table_notes.describe_source(run),
        )


def _clean(row: Row) -> str:
    if is_missing(row["n"]):
        return format_percent(None)
    rate = metrics.rate(int(row["clean_correct"]), int(row["n"]))
    return _to_plain(format_rate(rate.k, rate.n, rate.low, rate.high))


def _size(rows: Sequence[Row]) -> str:
    sizes = {int(row["n"]) for row in rows if not is_missing(row["n"])}
    return f"n = {max(sizes)}" if sizes else "no union complete"


def _to_plain(text: str) -> str:
    """Remove the percent sign, which the caption states."""
    return text.replace(" %", "")
