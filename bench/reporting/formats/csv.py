"""Rows as CSV, safe to open in a spreadsheet: there a text that begins as a formula is computed.

Such a text gets a quotation mark in front, which a spreadsheet hides and a program sees; numbers
are never touched, so "-0.5" stays what it is.
Source: OWASP, CSV Injection, https://owasp.org/www-community/attacks/CSV_Injection
"""

import re

import pandas as pd

from bench.reporting.formats.exports import ExportFormat
from bench.reporting.formats.numbers import format_text, is_missing
from bench.storage.spreadsheet import guard_formula

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def to_csv(rows: pd.DataFrame) -> bytes:
    """UTF-8, commas, a line per row; floats with the digits that give the same float back."""
    texts = [name for name in rows if not pd.api.types.is_numeric_dtype(rows[name])]
    safe = rows.copy()
    for name in texts:
        safe[name] = pd.Series(
            [_safe(value) for value in rows[name]], index=rows.index, dtype=object
        )
    return safe.to_csv(index=False, lineterminator="\n").encode()


def _safe(value: object) -> object:
    if is_missing(value):
        return ""
    if not isinstance(value, str):
        return value
    # A tab or a carriage return starts a formula in some programs and a line in others.
    text = format_text(value) if _CONTROL.search(value) else value
    return guard_formula(text)


CSV = ExportFormat(suffix=".csv", content=to_csv)
