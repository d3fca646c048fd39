"""Define a table of a publication and a format that renders it.

`markdown` and `latex` each implement one format.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd


class Bold(str):
    """Text of a cell that formats print in bold."""

    __slots__ = ()


class Symbol(str):
    """Text that formats with mathematics print as a symbol: "eps", or the name of a norm."""

    __slots__ = ()


EPS = Symbol("eps")


class SymbolText(str):
    """Text of several parts, some of which are `Symbol`; as a string, the parts joined."""

    parts: tuple[str, ...]

    def __new__(cls, *parts: str) -> "SymbolText":
        """Join texts.

        Args:
            parts: Texts, symbols and texts of several parts.

        Returns:
            The text.
        """
        text = super().__new__(cls, "".join(parts))
        text.parts = tuple(
            small
            for part in parts
            for small in (part.parts if isinstance(part, SymbolText) else (part,))
        )
        return text


class Span(NamedTuple):
    """A heading over several columns, in formats that have such headings."""

    title: str
    first: int
    """Index of the first column."""
    heads: Sequence[str]
    """Headings below it, one per column, which need not repeat the title."""


class PaperTable(NamedTuple):
    """One table of a publication, as text."""

    name: str
    """Letters, digits and dashes; used in file names and labels."""
    caption: str
    """What the table shows, in one or two sentences; symbols if it is a `SymbolText`."""
    frame: pd.DataFrame
    """Cells of text, or of `Bold`."""
    details: Sequence[str]
    """Sentences below the table: what is bold and why, parameters, versions."""
    notes: Sequence[str]
    """Footnotes; a cell that ends in "[k]" refers to number k - 1."""
    source: Sequence[str]
    """How to reproduce the table, one line each."""
    spans: Sequence[Span] = ()
    """Headings over columns."""


class TableFormat(NamedTuple):
    """A text format for tables."""

    suffix: str
    """Suffix of its files, with the dot."""
    render: Callable[[pd.DataFrame, str], str]
    """Render a frame of text under a caption, which may be empty; escapes both."""
    pages: Callable[[Sequence[PaperTable]], dict[str, str]]
    """Render all tables of a publication: content by file name."""
