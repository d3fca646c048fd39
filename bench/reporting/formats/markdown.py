"""Tables in GitHub's Markdown, and the escaping that keeps a label a label."""

import re
from collections.abc import Sequence

import pandas as pd

from bench.reporting.formats.numbers import DASH, format_text, is_numeric
from bench.reporting.formats.tables import Bold, PaperTable, TableFormat

_ACTIVE = re.compile(r"[\\`*_|~$]")
_LINK = re.compile(r"\](?=[(\[:])")  # "[92.6, 93.6]" stays readable; "[x](address)" is defused
_BLOCK = re.compile(r"^(?:[#=]|[+-](?=[\s-]|$)|\d+(?=[.)]\s))")  # "-0.5 pp" is no list


class MarkdownText(str):
    """Markdown that is finished: `escape` leaves it alone, as it does nothing else."""

    __slots__ = ()


def escape(value: object) -> str:
    """Any value as words of a Markdown line, whatever marks it holds.

    >>> escape("a|b"), escape("<script>"), escape("[x](http://y)"), escape("# no heading")
    ('a\\\\|b', '&lt;script&gt;', '[x\\\\](http://y)', '\\\\# no heading')
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
    """A block of code, inside a fence longer than any run of backticks in it."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return MarkdownText(f"{fence}sh\n{text.strip()}\n{fence}")


def render_table(frame: pd.DataFrame, caption: str = "") -> str:
    """A GitHub table of a frame of text, numbers to the right, the caption in bold above it.

    A frame without columns has no table in this format: ValueError.
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
    """tables.md: every table with its details and its source below it."""
    head = "<!-- made by bench publish; changes are lost when it is made again -->\n\n# Tables\n"
    return {f"tables{FORMAT.suffix}": "\n".join([head, *map(_section, tables)])}


def _section(made: PaperTable) -> str:
    told = [f"[{k}] {note}" for k, note in enumerate(made.notes, 1)]
    small = [escape(text) for text in (*told, " ".join(made.details), *made.source)]
    body = render_table(made.frame, made.caption)
    return f'<a id="{made.name}"></a>\n\n{body}\n\n' + "".join(f"{text}\n\n" for text in small)


def _cell(value: object) -> str:
    if value is None:
        return DASH
    return f"**{escape(value)}**" if isinstance(value, Bold) else escape(value)


FORMAT = TableFormat(suffix=".md", render=render_table, pages=render_pages)
