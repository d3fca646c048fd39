"""Tables of text."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from bench.reporting.formats.numbers import (
    format_eps,
    format_text,
    is_missing,
    is_numeric,
)

Row = dict[Any, Any]


class View(NamedTuple):
    """One table as it is read."""

    caption: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = []
    """Footnote k stands at place k - 1; the cells that mean it end in "[k]"."""

    @property
    def numeric(self) -> list[bool]:
        """Which columns are set to the right."""
        return [is_numeric(row[j] for row in self.rows) for j in range(len(self.columns))]

    @property
    def frame(self) -> pd.DataFrame:
        """The same as a frame of text, for `Format.render`."""
        return pd.DataFrame(self.rows, columns=pd.Index(self.columns), dtype=object)


class Footnotes:
    """Numbers reasons in the order they are met, each reason once."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mark(self, text: str) -> str:
        """The mark, such as "[2]", of the footnote that says `text`."""
        if text not in self.texts:
            self.texts.append(text)
        return f"[{self.texts.index(text) + 1}]"


def group_rows(rows: Iterable[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by the values of `keys`, in the order of first appearance; missing values are None."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        values = (row.get(key) for key in keys)
        found.setdefault(tuple(None if is_missing(v) else v for v in values), []).append(row)
    return found


def to_rows(frame: pd.DataFrame) -> list[Row]:
    """The rows of a frame as dictionaries, in order."""
    return list(frame.to_dict("records"))


def pivot_by_eps(
    caption: str,
    rows: Sequence[Row],
    keys: tuple[str, ...],
    names: Mapping[float, str],
    cell: Callable[[Row, Footnotes], str],
) -> View:
    """A line per value of `keys`, a column per eps; blank where nothing was planned."""
    notes = Footnotes()
    ladder = sorted({float(row["eps"]) for row in rows})
    lines = []
    for values, cells in group_rows(rows, *keys).items():
        there = {float(row["eps"]): cell(row, notes) for row in cells}
        lines.append([*map(format_text, values), *(there.get(eps, "") for eps in ladder)])
    columns = [*keys, *(f"eps {format_eps(eps, names)}" for eps in ladder)]
    return View(caption, columns, lines, notes.texts)
