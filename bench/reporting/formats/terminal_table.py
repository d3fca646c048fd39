"""Print tables on a terminal or into a file, without cutting a name or a number.

A file has no width: its tables are printed as wide as they are, but that prose is wrapped, since
each line is as wide as the longest. A terminal gets a table in blocks, side by side columns below
each other, each of which repeats the names of the rows.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Literal, NamedTuple

from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from bench.core.sanitize import escape_controls

Kind = Literal["name", "number", "word", "text"]
FRAME = 3
"""Cells of the terminal that a column takes beside its text: two of padding, one of a rule."""
MIN_TEXT = 16
"""Narrowest column of prose, in cells of the terminal."""
MAX_TEXT = 240
"""Widest column of prose, in cells."""
MIN_NAME = 8
"""Narrowest column of names; longer ones are folded."""


class Column(NamedTuple):
    """A column of a table."""

    title: str
    kind: Kind
    """`name` is repeated in each block and folded where it has to be; `number` and `word` stay on
    one line, to the right and to the left; `text` is wrapped between words."""


def print_table(
    screen: Console,
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    bold: Collection[int] = (),
    styles: Sequence[str] = (),
) -> None:
    """Print a table, in blocks where the terminal is narrower than it is.

    Args:
        screen: The console to print on.
        columns: The columns; those of names come first.
        rows: The cells of each row, as many as there are columns.
        bold: Numbers of the rows to emphasise.
        styles: Style of each row, such as "red"; none by default.
    """
    cells = [[escape_controls(text) for text in row] for row in rows]
    sizes = [
        _measure(column, [row[index] for row in cells]) for index, column in enumerate(columns)
    ]
    for widths in _split(columns, sizes, screen.width - 1):
        shown = Table()
        for index, width in widths.items():
            column = columns[index]
            right: JustifyMethod = "right" if column.kind == "number" else "left"
            shown.add_column(Text(column.title), justify=right, width=width, overflow="fold")
        for number, row in enumerate(cells):
            style = "bold" if number in bold else styles[number] if styles else None
            shown.add_row(*(Text(row[index]) for index in widths), style=style or None)
        screen.print(shown)


class _Size(NamedTuple):
    """The width that a column wants, and the least that it can do with."""

    natural: int
    least: int


def _measure(column: Column, texts: Sequence[str]) -> _Size:
    """Measure a column: nothing is wrapped at its natural width, and nothing cut at its least."""
    lines = [cell_len(line) for text in texts for line in text.splitlines()]
    natural = max([cell_len(column.title), *lines])
    if column.kind == "text":
        natural = min(natural, max(MAX_TEXT, cell_len(column.title)))
        return _Size(natural, min(natural, MIN_TEXT))
    words = map(cell_len, column.title.split())
    return _Size(natural, natural if column.kind == "name" else max([*words, *lines]))


def _split(
    columns: Sequence[Column], sizes: Sequence[_Size], room: int
) -> Iterator[dict[int, int]]:
    """Yield the blocks of a table: the columns of each by number, with their widths."""
    natural, least = ([size[i] for size in sizes] for i in range(2))
    if sum(natural) + FRAME * len(natural) <= room:
        yield dict(enumerate(natural))
        return
    names = [index for index, column in enumerate(columns) if column.kind == "name"]
    others = [index for index, column in enumerate(columns) if column.kind != "name"]
    widest = max((least[index] for index in others), default=0) + FRAME
    fixed = _fold([natural[index] for index in names], room // 2 if others else room, room - widest)
    left = room - sum(fixed) - FRAME * len(names)
    block: list[int] = []
    for index in [*others, -1]:
        taken = sum(least[each] + FRAME for each in block)
        if index == -1 or (block and taken + least[index] + FRAME > left):
            widths = {each: least[each] for each in block}
            spare = left - taken
            for each in block:
                more = min(spare, natural[each] - least[each])
                widths[each], spare = widths[each] + max(more, 0), spare - max(more, 0)
            yield {**dict(zip(names, fixed, strict=True)), **widths}
            block = []
        block.append(index)


def _fold(natural: Sequence[int], wanted: int, most: int) -> list[int]:
    """Widths of the columns of names: as they are, else the longest narrowed to a total."""
    widths = list(natural)
    total = min(wanted, most) - FRAME * len(widths)
    while sum(widths) > total and max(widths, default=0) > MIN_NAME:
        longest = widths.index(max(widths))
        widths[longest] -= 1
    return widths
