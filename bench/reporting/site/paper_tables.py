"""Build the tables of a publication: attacks on one model against eps, and models at one eps.

Bold, as `grids` defines it, is by the tests of the run, corrected for all comparisons of the run;
in tables over several runs, by those of `model_tables`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from bench.core.files import slug
from bench.reporting.formats.numbers import format_norm, format_text, map_eps_texts
from bench.reporting.formats.tables import EPS, PaperTable, Symbol, SymbolText
from bench.reporting.report.views import Row, group_rows, to_rows
from bench.reporting.site import grids, model_tables, summary_tables, table_notes
from bench.reporting.site.grid_tables import tabulate_grid
from bench.reporting.site.grids import TARGETED, Grid
from bench.reporting.site.sources import PublishedRun


def build_tables(runs: Sequence[PublishedRun]) -> list[PaperTable]:
    """Build the tables over several runs, then those of each run in the order of its suite.

    Args:
        runs: The runs, in order of publication.

    Returns:
        The tables, with unique names.
    """
    named = [("", table) for table in model_tables.build_model_tables(runs)]
    named += [(run.name, table) for run in runs for table in _build_run_tables(run)]
    counts, taken = Counter(str(table.caption) for _, table in named), set[str]()
    return [
        _with_unique_name(
            table._replace(caption=SymbolText(table.caption, f" Run {format_text(run)}."))
            if run and counts[table.caption] > 1
            else table,
            taken,
        )
        for run, table in named
    ]


def _build_run_tables(run: PublishedRun) -> Iterable[PaperTable]:
    """Build the tables of one run.

    Per norm and goal a table of attacks for each model and of models for each eps; then the unions
    of threat models and the worst classes.
    """
    eps_texts, tests = map_eps_texts(run.found.table), grids.index_tests(run.found.comparisons)
    planned = [row for row in to_rows(run.found.table) if row["eps"] > 0]
    together = [row for row in to_rows(run.found.worst) if row["eps"] > 0]
    for (norm, goal), rows in group_rows(planned, "norm", "goal").items():
        joined = [row for row in together if (row["norm"], row["goal"]) == (norm, goal)]
        models = group_rows(rows, "model")
        for (model,), own in models.items():
            worst = [row for row in joined if row["model"] == model]
            yield from _tabulate(
                run, own, grids.arrange_attacks(own, worst, eps_texts, tests), [str(model)]
            )
        if goal == TARGETED or len(models) == 1:
            continue
        for (eps,), own in group_rows(rows, "eps").items():
            worst = [row for row in joined if row["eps"] == eps]
            yield from _tabulate(
                run,
                own,
                grids.arrange_models(own, worst, tests),
                ["models", f"eps {own[0]['eps_text']}"],
            )
    yield from summary_tables.build_union_tables(run)
    yield from summary_tables.build_class_tables(run)


def _tabulate(
    run: PublishedRun, rows: Sequence[Row], grid: Grid, stem: Sequence[str]
) -> Iterable[PaperTable]:
    by_model, first = grid.corner == "model", rows[0]

    def describe(part: Grid) -> list[str]:
        shown = part.columns if by_model else part.lines
        return table_notes.describe_table(run, rows, shown, by_model)

    goal = [TARGETED] if first["goal"] == TARGETED else []
    name = slug("-".join([run.name, *stem, str(first["norm"]), *goal]))
    source = table_notes.describe_source(run)
    yield from tabulate_grid(grid, name, _caption(rows, by_model), describe, source)


def _caption(rows: Sequence[Row], by_model: bool) -> SymbolText:
    """State what the table shows: measure, model or eps, data, n, norm."""
    first = rows[0]
    done = next((row for row in rows if row["status"] == "ok"), None)
    size = f"n = {int(done['n'])}" if done else "no cell finished"
    norm = Symbol(format_norm(first["norm"]))
    place = SymbolText(f" ({format_text(first['dataset'])}, {size}, ", norm)
    goal = format_text(first["goal"])
    if by_model:
        eps = f" {format_text(first['eps_text'])}, {goal}"
        return SymbolText("Robust accuracy in percent at ", EPS, eps, place, ").")
    what = "Attack success rate" if first["goal"] == TARGETED else "Robust accuracy"
    clean = f", {table_notes.format_clean_accuracy(done)}" if done else ""
    title = f"{what} of {format_text(first['model'])} in percent against "
    return SymbolText(title, EPS, f", {goal}", place, f"{clean}).")


def _with_unique_name(table: PaperTable, taken: set[str]) -> PaperTable:
    """Give the table a unique name."""
    names = (table.name if k == 1 else f"{table.name}-{k}" for k in range(1, len(taken) + 2))
    free = next(name for name in names if name not in taken)
    taken.add(free)
    return table._replace(name=free)
