"""Arrange cells in lines and columns, and select what is bold.

In each column, bold marks the strongest attack (or the most robust model) and every other that
the exact paired test finds not significantly different. Nothing in a column is bold if that is the
whole column, or if a cell of it was not tested against the best.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from bench.evaluation.metrics import SIGNIFICANCE_LEVEL
from bench.reporting.formats.numbers import format_eps, format_norm, format_text
from bench.reporting.formats.tables import EPS, Symbol, SymbolText
from bench.reporting.report.views import Row, to_rows
from bench.reporting.site import table_notes
from bench.suite.labels import WORST_CASE

TARGETED = "targeted"


class Grid(NamedTuple):
    """Cells arranged in lines and columns."""

    corner: str
    """Heading of the first column: what the lines are."""
    lines: list[str]
    columns: list[str]
    cells: Mapping[tuple[str, str], Row]
    """Rows of table.csv by (line, column); some places are empty."""
    bold: set[tuple[str, str]]
    by_eps: bool
    """Whether the columns, but that of clean accuracy, are eps."""
    span: SymbolText
    """Heading over all columns but that of clean accuracy."""


class PairedTests(NamedTuple):
    """The corrected p-values of comparisons."""

    p_values: Mapping[tuple[Any, ...], float]

    def differ(self, *place: Any) -> bool | None:
        """Check whether two sides differ significantly.

        Args:
            place: What was compared, on what, norm, goal, eps, and the pair.

        Returns:
            Whether they do; None for a pair that was not tested.
        """
        p_value = self.p_values.get(place)
        return None if p_value is None else p_value <= SIGNIFICANCE_LEVEL


def index_tests(comparisons: pd.DataFrame) -> PairedTests:
    """Index the comparisons by what was compared.

    Args:
        comparisons: The rows of comparisons.csv.

    Returns:
        The corrected p-values.
    """
    places = {}
    for row in to_rows(comparisons):
        shared = row["model"] if row["compared"] == "attacks" else row["attack"]
        pair = frozenset((row["first"], row["second"]))
        place = (row["compared"], shared, row["norm"], row["goal"], float(row["eps"]), pair)
        places[place] = float(row["p_corrected"])
    return PairedTests(places)


def arrange_attacks(
    rows: Sequence[Row], worst: Sequence[Row], eps_texts: Mapping[float, str], tests: PairedTests
) -> Grid:
    """Arrange one model: a line per attack and the worst case, a column per eps.

    Args:
        rows: Rows of table.csv, of one model, norm and goal.
        worst: Rows of worst.csv, likewise.
        eps_texts: Text of each eps.
        tests: Tests of pairs of attacks.

    Returns:
        The grid.
    """
    columns = _name_columns(rows, eps_texts)
    cells = {(str(row["attack"]), columns[float(row["eps"])]): row for row in rows}
    bold: set[tuple[str, str]] = set()
    for eps, column in columns.items():
        there = [row for row in rows if row["eps"] == eps and row["status"] == "ok"]

        def differ(a: Row, b: Row, eps: float = eps) -> bool | None:
            pair = frozenset((a["attack"], b["attack"]))
            return tests.differ("attacks", a["model"], a["norm"], a["goal"], eps, pair)

        bold |= {(str(row["attack"]), column) for row in _best(there, _strength, differ)}
    lines = list(dict.fromkeys(str(row["attack"]) for row in rows))
    if len(lines) > 1 and worst and worst[0]["goal"] != TARGETED:
        lines.append(WORST_CASE)
        cells |= {(WORST_CASE, columns[float(row["eps"])]): row for row in worst}
    span = SymbolText(EPS, " (", _norm(rows[0]), ")")
    return Grid("attack", lines, list(columns.values()), cells, bold, by_eps=True, span=span)


def arrange_models(rows: Sequence[Row], worst: Sequence[Row], tests: PairedTests) -> Grid:
    """Arrange one eps: a line per model, a column for clean, each attack and the worst case.

    Args:
        rows: Rows of table.csv, of one norm, goal and eps.
        worst: Rows of worst.csv, likewise.
        tests: Tests of pairs of models.

    Returns:
        The grid.
    """
    lines = list(dict.fromkeys(str(row["model"]) for row in rows))
    done = [row for row in rows if row["status"] == "ok"]
    attacks = list(dict.fromkeys(str(row["attack"]) for row in rows))
    cells = {(str(row["model"]), str(row["attack"])): row for row in rows} | _clean_cells(done)
    columns = [table_notes.CLEAN, *attacks]
    candidates = {attack: [row for row in done if row["attack"] == attack] for attack in attacks}
    if len(attacks) > 1 and worst:
        columns.append(WORST_CASE)
        cells |= {(str(row["model"]), WORST_CASE): row for row in worst}
        # Models are tested over the attacks that both met; bold is valid only if those are all.
        candidates[WORST_CASE] = list(worst) if met_same_attacks(done, lines) else []
    bold: set[tuple[str, str]] = set()
    for attack, there in candidates.items():
        bold |= {(str(row["model"]), attack) for row in _best_models(there, attack, tests)}
    span = SymbolText("robust at ", EPS, f" {format_text(rows[0]['eps_text'])}")
    return Grid("model", lines, columns, cells, bold, by_eps=False, span=span)


def arrange_worst_cases(
    rows: Sequence[Row], worst: Sequence[Row], eps_texts: Mapping[float, str], tests: PairedTests
) -> Grid:
    """Arrange worst cases: a line per model, a column for clean and for each eps.

    Args:
        rows: Rows of table.csv, of one norm and goal.
        worst: Rows of worst.csv, likewise.
        eps_texts: Text of each eps.
        tests: Tests of pairs of models.

    Returns:
        The grid.
    """
    lines = list(dict.fromkeys(str(row["model"]) for row in rows))
    done = [row for row in rows if row["status"] == "ok"]
    columns = _name_columns(worst, eps_texts)
    cells = {(str(row["model"]), columns[float(row["eps"])]): row for row in worst}
    bold: set[tuple[str, str]] = set()
    for eps, column in columns.items():
        there = [row for row in worst if row["eps"] == eps]
        own = [row for row in done if row["eps"] == eps]
        if met_same_attacks(own, [str(row["model"]) for row in there]):
            best = _best_models(there, WORST_CASE, tests)
            bold |= {(str(row["model"]), column) for row in best}
    return Grid(
        "model", lines, [table_notes.CLEAN, *columns.values()], cells | _clean_cells(done), bold,
        by_eps=True, span=SymbolText(EPS, " (", _norm(rows[0]), ")"),
    )  # fmt: skip


def met_same_attacks(rows: Sequence[Row], models: Sequence[str]) -> bool:
    """Check whether every model met the same attacks.

    Args:
        rows: Finished rows of table.csv, of one norm, goal and eps.
        models: Labels of the models.

    Returns:
        True if they did.
    """
    met = [{row["attack"] for row in rows if row["model"] == model} for model in models]
    return len(set(map(frozenset, met))) == 1


def _name_columns(rows: Sequence[Row], eps_texts: Mapping[float, str]) -> dict[float, str]:
    return {eps: format_eps(eps, eps_texts) for eps in sorted({float(row["eps"]) for row in rows})}


def _clean_cells(done: Sequence[Row]) -> dict[tuple[str, str], Row]:
    """Collect the clean accuracy of each model from the first of its cells."""
    return {
        (str(row["model"]), table_notes.CLEAN): table_notes.without_attack(row)
        for row in reversed(done)
    }


def _norm(row: Row) -> Symbol:
    return Symbol(format_norm(row["norm"]))


# -------------------------------------------------------------------------------------------- bold


def _strength(row: Row) -> int:
    """Count the examples that an attack breaks or, if targeted, brings to the target."""
    return int(row["fooled"]) if row["goal"] == TARGETED else -int(row["robust_correct"])


def _best_models(rows: Sequence[Row], attack: str, tests: PairedTests) -> list[Row]:
    def differ(a: Row, b: Row) -> bool | None:
        place = (attack, a["norm"], a["goal"], float(a["eps"]))
        return tests.differ("models", *place, frozenset((a["model"], b["model"])))

    return _best(rows, lambda row: int(row["robust_correct"]), differ)


def _best(
    rows: Sequence[Row], good: Callable[[Row], int], differ: Callable[[Row, Row], bool | None]
) -> list[Row]:
    """Select the best row and those not significantly different from it."""
    if not rows:
        return []
    best = max(rows, key=good)
    verdicts = [False if row is best else differ(best, row) for row in rows]
    found = [row for row, verdict in zip(rows, verdicts, strict=True) if verdict is False]
    return found if len(found) < len(rows) and None not in verdicts else []
