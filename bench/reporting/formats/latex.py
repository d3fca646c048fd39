r"""Render tables in LaTeX: booktabs rules, siunitx columns, intervals in small type below.

Symbols print as mathematics, headings span the columns that share them, and sentences about the
table stand below it as notes of threeparttable. A document needs booktabs, siunitx (2 or 3),
threeparttable, etoolbox and the two lines of `_HEAD` that align bold numbers. `tables.tex` has them
and compiles alone; it inputs each table from its own file, so that a paper can input the same file.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from bench.reporting.formats.numbers import DASH, format_text, is_numeric
from bench.reporting.formats.tables import (
    Bold,
    PaperTable,
    Span,
    Symbol,
    SymbolText,
    TableFormat,
)

_FIGURE = re.compile(
    r"(?P<sign>[<>]?)(?P<number>\d+(?:\.(?P<decimals>\d+))?)(?P<percent> ?%)?"
    r"(?P<interval> \[[\d.]+, [\d.]+\])?(?P<note> \[\d+\])?"
)
_MARKS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''",
    # After a line's end these would be read as its options.
    "[": "{[}", "]": "{]}", "*": "{*}",
    "—": r"\textemdash{}", "–": r"\textendash{}", "…": r"\dots{}",  # noqa: RUF001
    "ß": r"\ss{}", "ø": r"\o{}", "Ø": r"\O{}",
    "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}", "Œ": r"\OE{}", "ł": r"\l{}", "Ł": r"\L{}",
    "‘": "`", "’": "'", "“": "``", "”": "''", "§": r"\S{}", "©": r"\copyright{}",  # noqa: RUF001
}  # fmt: skip
_MATHS = {
    "×": r"\times", "·": r"\cdot", "±": r"\pm", "−": "-", "≤": r"\leq", "≥": r"\geq",  # noqa: RUF001
    "≠": r"\neq", "→": r"\to", "∞": r"\infty", "°": r"^\circ", "²": "^2", "³": "^3", "µ": r"\mu",
    "α": r"\alpha", "β": r"\beta", "γ": r"\gamma", "δ": r"\delta", "ε": r"\varepsilon",  # noqa: RUF001
    "ϵ": r"\epsilon", "κ": r"\kappa", "λ": r"\lambda", "μ": r"\mu", "ρ": r"\rho", "σ": r"\sigma",  # noqa: RUF001
    "τ": r"\tau", "Δ": r"\Delta",
}  # fmt: skip
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u",
    "\u0307": ".", "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c",
}  # fmt: skip
_SYMBOLS = {
    "eps": r"\varepsilon", "L-inf": r"\ell_\infty", "L2": r"\ell_2", "L1": r"\ell_1",
    "L0": r"\ell_0",
}  # fmt: skip
"""Symbols by their text; any other symbol prints as text."""
_LONG, _WRAPPED = 34, r">{\raggedright\arraybackslash}p{50mm}"
"""Columns with longer text have wrapped lines."""
_NARROW = 10
"""Longer headings of columns of numbers are wrapped."""
_HEAD = r"""\documentclass[10pt]{article}
\usepackage[a4paper,margin=18mm]{geometry}
\usepackage{booktabs}
\usepackage{etoolbox}
\usepackage{siunitx}
\usepackage{threeparttable}
% A bold number stays in its column; both lines belong into the preamble of a paper, too.
\robustify\bfseries
\sisetup{detect-weight=true}
\begin{document}
"""


def escape(value: object) -> str:
    r"""Escape a value as text of one LaTeX line.

    A character that pdfLaTeX cannot print is replaced by its code point.

    Args:
        value: Any value; None is empty.

    Returns:
        The text.

    Example:
        >>> escape("50% of $x_1$"), escape("[x]"), escape("--"), escape("é 中")
        ('50\\% of \\$x\\_1\\$', '{[}x{]}', '-{}-', "\\'{e} {[}U+4E2D{]}")
    """
    if isinstance(value, Symbol) and value in _SYMBOLS:
        return rf"\ensuremath{{{_SYMBOLS[value]}}}"
    if isinstance(value, SymbolText):
        return "".join(_escape_part(part) for part in value.parts)
    text = "" if value is None or value == "" else format_text(value)
    # Two hyphens would become a dash; a percent sign stays on the line of its number.
    return re.sub("-(?=-)", "-{}", "".join(map(_letter, text))).replace(r" \%", r"~\%")


def _escape_part(part: str) -> str:
    """Escape a part of a text with the spaces at its ends, which `escape` alone removes."""
    before, after = (" " if part[at : at + 1 or None].isspace() else "" for at in (0, -1))
    return part and f"{before}{escape(part)}{after if part.strip() else ''}"


def _letter(mark: str) -> str:
    if mark in _MARKS:
        return _MARKS[mark]
    if mark in _MATHS:
        return rf"\ensuremath{{{_MATHS[mark]}}}"
    if mark.isascii():
        return mark
    base, *accents = list(unicodedata.normalize("NFD", mark))
    if base.isascii() and len(accents) == 1 and accents[0] in _ACCENTS:
        return rf"\{_ACCENTS[accents[0]]}{{{base}}}"
    return f"{{[}}U+{ord(mark):04X}{{]}}"


class Column(NamedTuple):
    """One column of a tabular."""

    kind: str
    """Its column type in the preamble."""
    head: str
    cells: list[tuple[str, str]]
    """Text of each cell, and the small text below it."""


def render_table(frame: pd.DataFrame, caption: str = "") -> str:
    """Render a `table` with its caption above, or a bare `tabular` without caption.

    A column of numbers with one decimal place is aligned at the decimal point.

    Args:
        frame: Cells of text or `Bold`.
        caption: Caption, also for the list of tables.

    Returns:
        The LaTeX source.

    Raises:
        ValueError: The frame has no columns.
    """
    tabular = _tabular(frame)
    return _float(tabular, caption, "", []) if caption else tabular


def _tabular(frame: pd.DataFrame, spans: Sequence[Span] = ()) -> str:
    if frame.columns.empty:
        raise ValueError("expected a frame with at least one column, got none")
    heads = [*frame.columns]
    for span in spans:
        heads[span.first : span.first + len(span.heads)] = span.heads
    columns = [_column(head, list(frame.iloc[:, j])) for j, head in enumerate(heads)]
    lines = [*_spanning_heads(spans), " & ".join(column.head for column in columns) + r" \\"]
    lines.append(r"\midrule")
    for k in range(len(frame)):
        figures, below = zip(*(column.cells[k] for column in columns), strict=True)
        end = r"\\[-0.5ex]" if any(below) else r"\\"
        lines.append(f"{' & '.join(figures)} {end}")
        if any(below):
            lines.append(f"{' & '.join(below)} " + r"\\[0.4ex]")
    kinds = "".join(column.kind for column in columns)
    body = [rf"\begin{{tabular}}{{@{{}}{kinds}@{{}}}}", r"\toprule", *lines, r"\bottomrule"]
    return "\n".join([*body, r"\end{tabular}"])


def _spanning_heads(spans: Sequence[Span]) -> list[str]:
    """Render the row of headings over columns, and the rules below them."""
    cells, rules, at = "", [], 0
    for span in spans:
        size = len(span.heads)
        cells += " &" * (span.first - at) + rf" \multicolumn{{{size}}}{{c}}{{{escape(span.title)}}}"
        rules.append(rf"\cmidrule(lr){{{span.first + 1}-{span.first + size}}}")
        at = span.first + size - 1
    return [cells.strip() + r" \\", " ".join(rules)] if spans else []


def _float(tabular: str, caption: str, name: str, notes: Sequence[str]) -> str:
    """Put a tabular below its caption and above its notes."""
    label = rf"\label{{tab:{name}}}" if name else ""
    lines = [r"\begin{table}[htbp]", r"\centering", r"\begin{threeparttable}"]
    lines += [
        rf"\caption{{{escape(caption)}}}{label}",
        r"\small",
        r"\setlength{\tabcolsep}{4pt}",
        tabular,
    ]
    if notes:
        lines += [r"\begin{tablenotes}[flushleft]", r"\footnotesize", *notes]
        lines.append(r"\end{tablenotes}")
    return "\n".join([*lines, r"\end{threeparttable}", r"\end{table}"])


def _column(head: object, values: list[object]) -> Column:
    texts = ["" if value is None else str(value) for value in values]
    found = [_FIGURE.fullmatch(text) for text in texts]
    aligned = is_numeric(texts) and all(
        match or text in ("", DASH) or text.startswith(f"{DASH} [")
        for match, text in zip(found, texts, strict=True)
    )
    if not aligned:
        cells = [(_bold(value, escape(value)), "") for value in values]
        kind = "r" if is_numeric(texts) else "l" if max(map(len, texts)) <= _LONG else _WRAPPED
        return Column(kind, escape(head), cells)
    before = max((len(m["number"].partition(".")[0]) for m in found if m), default=1)
    after = max((len(m["decimals"] or "") for m in found if m), default=0)
    unit = r" (\%)" if any(match["percent"] for match in found if match) else ""
    title = escape(head) + unit
    if len(str(head)) > _NARROW:
        title = rf"\parbox[b]{{20mm}}{{\centering {title}}}"
    cells = [_figure(value, match) for value, match in zip(values, found, strict=True)]
    return Column(f"S[table-format={before}.{after}]", f"{{{title}}}", cells)


def _figure(value: object, match: re.Match[str] | None) -> tuple[str, str]:
    """Split a cell into the number, and the interval and footnote below it."""
    if match is None:
        dash, _, note = str(value or "").partition(" ")
        return (f"{{{escape(dash)}}}" if dash else "", _small(note))
    number = match["number"]
    if match["sign"]:
        number = rf"{{$\mathord{{{match['sign']}}}{number}$}}"
    return _bold(value, number), _small((match["interval"] or "") + (match["note"] or ""))


def _small(text: str) -> str:
    return rf"{{\scriptsize {escape(text.strip())}}}" if text.strip() else ""


def _bold(value: object, text: str) -> str:
    return rf"\bfseries {text}" if isinstance(value, Bold) else text


def render_pages(tables: Sequence[PaperTable]) -> dict[str, str]:
    """Render tables.tex, which compiles alone, and the file of each table that it inputs.

    Args:
        tables: The tables of a publication.

    Returns:
        Content by file name.
    """
    files = {f"table-{paper_table.name}.tex": _page(paper_table) for paper_table in tables}
    inputs = "\n".join(rf"\input{{{name}}}" + "\n\\clearpage" for name in files)
    return {
        f"tables{FORMAT.suffix}": f"{_GENERATED}\n{_HEAD}{inputs}\n\\end{{document}}\n",
        **files,
    }


_GENERATED = "% Generated by bench publish; do not edit, regenerate."


def _page(paper_table: PaperTable) -> str:
    """Render the source as comments, then the table with its footnotes and details as notes."""
    source = "\n".join(f"% {format_text(line)}" for line in paper_table.source)
    # The marks of notes are those of the cells, which no format raises.
    notes = [rf"\item {escape(f'[{k}] {note}')}" for k, note in enumerate(paper_table.notes, 1)]
    notes += [rf"\item {_escape_detail(text)}" for text in paper_table.details]
    tabular = _tabular(paper_table.frame, paper_table.spans)
    body = _float(tabular, paper_table.caption, paper_table.name, notes)
    return f"{_GENERATED}\n{source}\n{body}\n"


def _escape_detail(text: str) -> str:
    """Escape a sentence; "0.2 eps" as a value of a parameter prints its symbol."""
    parts = re.split(r"(?<=[\d=] )(eps)\b", text)
    return escape(SymbolText(*(Symbol(part) if part == "eps" else part for part in parts)))


FORMAT = TableFormat(suffix=".tex", render=render_table, pages=render_pages)
