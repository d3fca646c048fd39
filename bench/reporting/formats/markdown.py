"""Render tables in GitHub's Markdown, and escape text so that labels stay labels."""

import re
from collections.abc import Sequence

import pandas as pd

from bench.reporting.formats.numbers import DASH, format_text, is_numeric
from bench.reporting.formats.tables import Bold, PaperTable, TableFormat

_ACTIVE = re.compile(r"[\\`*_|~$]")
_LINK = re.compile(r"\](?=[(\[:])")  # "[92.6, 93.6]" stays readable, "[x](address)" is no link
_BLOCK = re.compile(r"^(?:[#=]|[+-](?=[\s-]|$)|\d+(?=[.)]\s))")  # "-0.5 pp" is no list


class MarkdownText(str):
    """Finished Markdown, which `escape` leaves unchanged."""

    __slots__ = ()


def escape(value: object) -> str:
    r"""Escape a value as text of one Markdown line.

    Args:
        value: Any value; None is empty.

    Returns:
        The text, without active markup.

    Example:
        >>> escape("a|b"), escape("<script>")
        ('a\\|b', '&lt;script&gt;')
        >>> escape("[x](http://y)"), escape("# no heading")
        ('[x\\](http://y)', '\\# no heading')
    """
    if isinstance(value, MarkdownText):
        return value
    text = "" if value is None or value == "" else format_text(value)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _LINK.sub(r"\\]", _ACTIVE.sub(r"\\\g<0>", text))
    start = _BLOCK.match(text)
    if start is None:
        return text
    place = start.end() if start[0].isdigit() else 0  # "1. x" becomes "1\. x", "# x" "\# x"
    return f"{text[:place]}\\{text[place:]}"


def format_code_block(text: str) -> MarkdownText:
    """Format text as a code block with a fence longer than any run of backticks in it.

    Args:
        text: Shell commands.

    Returns:
        The code block.
    """
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return MarkdownText(f"{fence}sh\n{text.strip()}\n{fence}")


def render_table(frame: pd.DataFrame, caption: str = "") -> str:
    """Render a frame of text as a GitHub table, numbers aligned right.

    Args:
        frame: Cells of text or `Bold`.
        caption: Printed in bold above the table unless empty.

    Returns:
        The table.

    Raises:
        ValueError: The frame has no columns.
    """
    if frame.columns.empty:
        raise ValueError("expected a frame with at least one column, got none")
    columns = [[_cell(cell) for cell in frame.iloc[:, j]] for j in range(frame.shape[1])]
    head = [_cell(name) for name in frame.columns]
    rules = ["---:" if is_numeric(map(str, frame.iloc[:, j])) else "---" for j in range(len(head))]
    lines = [head, rules, *zip(*columns, strict=True)]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"**{escape(caption)}**\n\n{body}" if caption else body


def render_pages(tables: Sequence[PaperTable]) -> dict[str, str]:
    """Render tables.md, every table with its details and its source.

    Args:
        tables: The tables of a publication.

    Returns:
        Content by file name.
    """
    head = "<!-- made by bench publish; changes are lost when it is made again -->\n\n# Tables\n"
    return {f"tables{FORMAT.suffix}": "\n".join([head, *map(_section, tables)])}


def _section(made: PaperTable) -> str:
    notes = [f"[{k}] {note}" for k, note in enumerate(made.notes, 1)]
    small = [escape(text) for text in (*notes, " ".join(made.details), *made.source)]
    body = render_table(made.frame, made.caption)
    return f'<a id="{made.name}"></a>\n\n{body}\n\n' + "".join(f"{text}\n\n" for text in small)


def _cell(value: object) -> str:
    if value is None:
        return DASH
    return f"**{escape(value)}**" if isinstance(value, Bold) else escape(value)


FORMAT = TableFormat(suffix=".md", render=render_table, pages=render_pages)
