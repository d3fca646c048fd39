"""Define a table of a publication and a format that renders it.

`markdown` and `latex` each implement one format.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd


class Bold(str):
    """Text of a cell that formats print in bold."""

    __slots__ = ()


class PaperTable(NamedTuple):
    """One table of a publication, as text."""

    name: str
    """Letters, digits and dashes; used in file names and labels."""
    caption: str
    """What the table shows, in one or two sentences."""
    frame: pd.DataFrame
    """Cells of text, or of `Bold`."""
    details: Sequence[str]
    """Sentences below the table: what is bold and why, parameters, versions."""
    notes: Sequence[str]
    """Footnotes; a cell that ends in "[k]" refers to number k - 1."""
    source: Sequence[str]
    """How to reproduce the table, one line each."""


class TableFormat(NamedTuple):
    """A text format for tables."""

    suffix: str
    """Suffix of its files, with the dot."""
    render: Callable[[pd.DataFrame, str], str]
    """Render a frame of text under a caption, which may be empty; escapes both."""
    pages: Callable[[Sequence[PaperTable]], dict[str, str]]
    """Render all tables of a publication: content by file name."""
