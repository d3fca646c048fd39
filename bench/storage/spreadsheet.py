"""Tables of a run as CSV, safe to open in a spreadsheet, where a text that begins as a formula is
computed.

Such a text gets an apostrophe in front, which a spreadsheet hides; `unguarded` takes it off again,
so that a program reads what was written. Numbers are never touched: -0.5 stays what it is.
Source: OWASP, CSV Injection, https://owasp.org/www-community/attacks/CSV_Injection
"""

import re

import pandas as pd

_FORMULA = re.compile("'*[=+\\-@\t\r\n＝＋－＠]")  # noqa: RUF001
"""How a formula begins, behind any apostrophes: with one more of them it can be told apart again
from a text that had them itself."""


def to_csv(frame: pd.DataFrame) -> bytes:
    """UTF-8, a header and a line per row; texts guarded."""
    safe = frame.copy(deep=False)
    for name in safe.columns:
        if not pd.api.types.is_numeric_dtype(safe[name]):
            cells = [guard_formula(cell) if isinstance(cell, str) else cell for cell in safe[name]]
            safe[name] = pd.Series(cells, index=safe.index, dtype=object)
    return safe.to_csv(index=False).encode()


def guard_formula(text: str) -> str:
    """The text, with an apostrophe in front if a spreadsheet would compute it.

    >>> guarded("=1+1"), guarded("a-b"), guarded("'=1")
    ("'=1+1", 'a-b', "''=1")
    """
    return f"'{text}" if _FORMULA.match(text) else text


def unguard_formula(text: str) -> str:
    """What was written as this by `guarded`.

    >>> [unguarded(guarded(text)) for text in ("=1+1", "-0.5", "''@a", "'a", "")]
    ['=1+1', '-0.5', "''@a", "'a", '']
    """
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text
