"""Build the tables of a publication over several runs: models under one threat model.

Models share a table where their runs have the same examples, norm and goal: a table of
worst cases against eps, and at each eps one of attacks. An attack has one column where the runs
asked the same of it, else one for each run.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bench.analysis import model_comparison, pairwise
from bench.analysis.model_comparison import ModelOutcomes
from bench.core.files import slug
from bench.evaluation.metrics import Outcomes
from bench.reporting.formats.numbers import (
    format_norm,
    format_plural,
    format_text,
    map_eps_texts,
)
from bench.reporting.formats.tables import EPS, PaperTable, Symbol, SymbolText
from bench.reporting.report.views import Row, group_rows, to_rows
from bench.reporting.site import grids, table_notes
from bench.reporting.site.grid_tables import tabulate_grid
from bench.reporting.site.grids import TARGETED, Grid
from bench.reporting.site.sources import PublishedRun
from bench.suite.plan import Cell

PRINT_DIGITS = 12
"""Digits shown of the fingerprint of a model."""


class Source(NamedTuple):
    """A run, with what its rows are looked up by."""

    run: PublishedRun
    cells: Mapping[str, Cell]
    """By identity."""
    outcomes: Mapping[str, Outcomes]
    """Which examples are robust, by identity of the cell; empty without records."""


def build_model_tables(runs: Sequence[PublishedRun]) -> Iterator[PaperTable]:
    """Build the tables of models of several runs.

    Args:
        runs: The runs, in order of publication, with unique labels of models.

    Yields:
        For each threat model that several runs have, a table of worst cases and one for each eps.
    """
    if len(runs) < 2:
        return
    sources = {
        run.name: Source(
            run,
            {cell.identity: cell for cell in run.found.plan},
            model_comparison.read_outcomes(run.found),
        )
        for run in runs
    }
    keys = ("data", "norm", "goal")
    planned = group_rows(_collect(runs, "table"), *keys)
    together = group_rows(_collect(runs, "worst"), *keys)
    for threat, rows in planned.items():
        if threat[2] == TARGETED or not _is_of_several(rows):
            continue
        worst, by_eps = together.get(threat, []), group_rows(rows, "eps")
        shared = {eps for (eps,), own in by_eps.items() if _is_of_several(own)}
        named = [row for (eps,), own in by_eps.items() if eps in shared
                 for row in _name_attacks(own, sources)]  # fmt: skip
        joined = _mark_other_attacks([row for row in worst if row["eps"] in shared], named)
        if len(shared) > 1 and _is_of_several(joined):
            yield from _tabulate_worst_cases(sources, named, joined)
        for (eps,), own in group_rows(named, "eps").items():
            there = [row for row in joined if row["eps"] == eps]
            yield from _tabulate_attacks(sources, own, there)


def _collect(runs: Sequence[PublishedRun], table: str) -> list[Row]:
    """Collect the rows of a table above eps 0, each with its run and the data's fingerprint."""
    return [
        {**row, "run": run.name, "data": run.found.provenance["data"]["fingerprint"]}
        for run in runs
        for row in to_rows(getattr(run.found, table))
        if row["eps"] > 0 and row.get("status") != "skipped"
    ]


def _is_of_several(rows: Sequence[Row]) -> bool:
    return len({row["run"] for row in rows}) > 1


def _name_attacks(rows: Sequence[Row], sources: Mapping[str, Source]) -> list[Row]:
    """Put the run's name after an attack's label where the runs asked something else of it."""
    asked = [
        model_comparison.describe_attack(
            sources[row["run"]].run.found, sources[row["run"]].cells[row["cell"]]
        )
        for row in rows
    ]
    kinds: dict[str, set[str]] = {}
    for row, what in zip(rows, asked, strict=True):
        kinds.setdefault(str(row["attack"]), set()).add(what)
    return [
        {**row, "attack": f"{row['attack']}, {row['run']}"}
        if len(kinds[str(row["attack"])]) > 1
        else row
        for row in rows
    ]


def _mark_other_attacks(worst: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    """Say at a worst case over which attacks it is, where models met other attacks at its eps."""
    marked = []
    for (eps,), own in group_rows(worst, "eps").items():
        done = [row for row in rows if row["eps"] == eps and row["status"] == "ok"]
        alike = grids.met_same_attacks(done, [str(row["model"]) for row in own])
        for row in own:
            met = [str(cell["attack"]) for cell in done if cell["model"] == row["model"]]
            over = f"over {', '.join(map(format_text, met))}; another line is over other attacks"
            marked.append(row if alike else {**row, "remark": over})
    return marked


# ------------------------------------------------------------------------------------------ tables


def _tabulate_worst_cases(
    sources: Mapping[str, Source], rows: Sequence[Row], worst: Sequence[Row]
) -> Iterator[PaperTable]:
    eps_texts: dict[float, str] = {}
    for source in reversed([*sources.values()]):
        eps_texts |= map_eps_texts(source.run.found.table)
    pairs = [
        pair
        for _, own in group_rows(rows, "eps").items()
        for pair in model_comparison.pair_worst_cases(_members(sources, own), _place(own[0]))
    ]
    tests = grids.index_tests(pairwise.tabulate_pairs(pairs))
    grid = grids.arrange_worst_cases(rows, worst, eps_texts, tests)
    caption = SymbolText(
        "Robust accuracy in percent under the worst case over the attacks, against ", EPS,
        f", {format_text(rows[0]['goal'])}", _place_text(rows),
    )  # fmt: skip
    yield from _tabulate(sources, rows, grid, ["worst case"], caption, len(pairs))


def _tabulate_attacks(
    sources: Mapping[str, Source], rows: Sequence[Row], worst: Sequence[Row]
) -> Iterator[PaperTable]:
    members, place = _members(sources, rows), _place(rows[0])
    pairs = [*model_comparison.pair_models(members, place)]
    if len({row["attack"] for row in rows}) > 1:
        pairs += model_comparison.pair_worst_cases(members, place)
    tests = grids.index_tests(pairwise.tabulate_pairs(pairs))
    grid = grids.arrange_models(rows, worst, tests)
    eps = format_text(rows[0]["eps_text"])
    caption = SymbolText(
        "Robust accuracy in percent at ", EPS, f" {eps}, {format_text(rows[0]['goal'])}",
        _place_text(rows),
    )  # fmt: skip
    yield from _tabulate(sources, rows, grid, [f"eps {eps}"], caption, len(pairs))


def _tabulate(
    sources: Mapping[str, Source], rows: Sequence[Row], grid: Grid, stem: Sequence[str],
    caption: SymbolText, tests: int,
) -> Iterator[PaperTable]:  # fmt: skip
    own = [sources[name] for name in dict.fromkeys(row["run"] for row in rows)]
    details = [
        table_notes.INTERVALS,
        _explain_bold(own, tests),
        _describe_attacks(sources, rows),
        _describe_models(own, rows),
        *_describe_versions(own, rows),
    ]
    lines = [
        f"{format_text(each.run.name)}: {line[0].lower()}{line[1:]}"
        for each in own
        for line in table_notes.describe_source(each.run)
    ]
    data = [format_text(rows[0]["dataset"]), *stem, str(rows[0]["norm"])]
    name = slug("-".join(["models", *data]))
    yield from tabulate_grid(grid, name, caption, lambda _: [*filter(None, details)], lines)


def _members(sources: Mapping[str, Source], rows: Sequence[Row]) -> list[ModelOutcomes]:
    """Collect the outcomes of each model at one eps; a model without records has none."""
    members: dict[str, dict[str, Outcomes]] = {}
    for row in rows:
        known = sources[row["run"]].outcomes
        if row["status"] == "ok" and row["cell"] in known:
            members.setdefault(str(row["model"]), {})[str(row["attack"])] = known[row["cell"]]
    return [ModelOutcomes(model, robust) for model, robust in members.items()]


def _place(row: Row) -> dict[str, Any]:
    return {name: row[name] for name in ("norm", "goal", "target", "eps", "eps_text")}


def _place_text(rows: Sequence[Row]) -> SymbolText:
    done = next((row for row in rows if row["status"] == "ok"), None)
    size = f"n = {int(done['n'])}" if done else "no cell finished"
    norm = Symbol(format_norm(rows[0]["norm"]))
    return SymbolText(f" ({format_text(rows[0]['dataset'])}, {size}, ", norm, ").")


# ------------------------------------------------------------------------------------------- notes


def _explain_bold(sources: Sequence[Source], tests: int) -> str:
    """Explain bold cells, the number of tests behind them, and which runs have none."""
    bare = [format_text(each.run.name) for each in sources if not each.outcomes]
    why = f"of {' and '.join(bare)} only the tables are available, and no records of examples"
    if not tests:
        return f"Nothing is bold: {why if bare else 'no two models met the same attacks'}."
    but = f" A column with a model of {' or '.join(bare)} is not tested: {why}." if bare else ""
    return (
        "Bold: the model that stays robust on most examples, and all that the exact McNemar test "
        "on the same examples finds not significantly different (5 %, Holm-corrected for the "
        f"{format_plural(tests, 'comparison')} of this table); nothing if that is the whole "
        f"column. The column without attack is not tested.{but}"
    )


def _describe_attacks(sources: Mapping[str, Source], rows: Sequence[Row]) -> str:
    """List the parameters of each column, from the first run that has it."""
    first: dict[str, str] = {}
    cells: dict[str, list[Cell]] = {}
    for row in rows:
        attack, source = str(row["attack"]), sources[row["run"]]
        if first.setdefault(attack, row["model"]) == row["model"]:
            cells.setdefault(attack, []).append(source.cells[row["cell"]])
    return table_notes.describe_parameters(cells)


def _describe_models(sources: Sequence[Source], rows: Sequence[Row]) -> str:
    """Name run and fingerprint of each model: equal ones are one model."""
    shown = {str(row["model"]): str(row["run"]) for row in rows}
    known = {each.run.name: each.run.found.provenance["models"] for each in sources}
    prints = [
        f"{format_text(model)}: run {format_text(run)}, fingerprint "
        f"{known[run][model]['fingerprint'][:PRINT_DIGITS]}"
        for model, run in shown.items()
    ]
    return f"Models: {'; '.join(prints)}."


def _describe_versions(sources: Sequence[Source], rows: Sequence[Row]) -> list[str]:
    sentences: dict[str, list[str]] = {}
    for each in sources:
        environment = each.run.found.provenance["sessions"][-1]["environment"]
        own = [row for row in rows if row["run"] == each.run.name]
        sentence = table_notes.describe_versions(environment, own)
        sentences.setdefault(sentence, []).append(format_text(each.run.name))
    if len(sentences) == 1:
        return [*sentences]
    return [f"{' and '.join(names)}: {sentence}" for sentence, names in sentences.items()]
