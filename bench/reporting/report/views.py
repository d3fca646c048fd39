"""Define the tables of text that a report prints in every format.

A view holds only text; numbers are formatted when it is built. In every view a cell that failed
or was skipped is a dash with a footnote that gives the reason.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from bench.reporting.formats.numbers import format_eps, format_text, is_missing, is_numeric

Row = dict[Any, Any]


class View(NamedTuple):
    """A table of text."""

    caption: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = []
    """Footnotes; a cell that ends in "[k]" refers to number k - 1."""

    @property
    def numeric(self) -> list[bool]:
        """Whether each column is aligned right."""
        return [is_numeric(row[j] for row in self.rows) for j in range(len(self.columns))]

    @property
    def frame(self) -> pd.DataFrame:
        """The same table as a frame of text, for `TableFormat.render`."""
        return pd.DataFrame(self.rows, columns=pd.Index(self.columns), dtype=object)


class Footnotes:
    """Number reasons in order of first use, each reason once."""

    def __init__(self) -> None:
        """Start without footnotes."""
        self.texts: list[str] = []

    def mark(self, text: str) -> str:
        """Return the mark of a footnote, adding the footnote if it is new.

        Args:
            text: The footnote.

        Returns:
            The mark, such as "[2]".
        """
        if text not in self.texts:
            self.texts.append(text)
        return f"[{self.texts.index(text) + 1}]"


def group_rows(rows: Iterable[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    """Group rows by the values of `keys`, in order of first appearance.

    Args:
        rows: The rows.
        keys: Columns to group by.

    Returns:
        Rows by the tuple of values; a missing value is None.
    """
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        values = (row.get(key) for key in keys)
        found.setdefault(tuple(None if is_missing(v) else v for v in values), []).append(row)
    return found


def to_rows(frame: pd.DataFrame) -> list[Row]:
    """Convert a frame to one dictionary per row, in order.

    Args:
        frame: The frame.

    Returns:
        The rows, by column name.
    """
    return list(frame.to_dict("records"))


def pivot_by_eps(
    caption: str,
    rows: Sequence[Row],
    keys: tuple[str, ...],
    eps_texts: Mapping[float, str],
    cell: Callable[[Row, Footnotes], str],
) -> View:
    """Pivot rows to one line per value of `keys` and one column per eps.

    Args:
        caption: Caption of the view.
        rows: The rows, each with an eps.
        keys: Columns that name a line.
        eps_texts: Text of each eps, from `map_eps_texts`.
        cell: Formats one row, adding footnotes where needed.

    Returns:
        The view; a combination that was not planned is blank.
    """
    notes = Footnotes()
    ladder = sorted({float(row["eps"]) for row in rows})
    lines = []
    for values, cells in group_rows(rows, *keys).items():
        there = {float(row["eps"]): cell(row, notes) for row in cells}
        lines.append([*map(format_text, values), *(there.get(eps, "") for eps in ladder)])
    columns = [*keys, *(f"eps {format_eps(eps, eps_texts)}" for eps in ladder)]
    return View(caption, columns, lines, notes.texts)
