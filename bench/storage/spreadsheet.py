"""Write tables as CSV that is safe to open in a spreadsheet.

A spreadsheet computes a text that begins like a formula. Such a text gets an apostrophe in front,
which a spreadsheet hides; `unguard_formula` removes it, so that a program reads what was written.
Numbers are never changed: -0.5 stays -0.5.
Source: OWASP, CSV Injection, https://owasp.org/www-community/attacks/CSV_Injection
"""

import re

import pandas as pd

_FORMULA = re.compile("'*[=+\\-@\t\r\n＝＋－＠]")  # noqa: RUF001
"""Beginning of a formula after any number of apostrophes: one more keeps a text that begins with
apostrophes itself distinguishable."""


def to_csv(frame: pd.DataFrame) -> bytes:
    """Write a table as CSV, texts guarded.

    Args:
        frame: The table; its index is not written.

    Returns:
        UTF-8: a header and a line per row.
    """
    safe = frame.copy(deep=False)
    for name in safe.columns:
        if not pd.api.types.is_numeric_dtype(safe[name]):
            cells = [guard_formula(cell) if isinstance(cell, str) else cell for cell in safe[name]]
            safe[name] = pd.Series(cells, index=safe.index, dtype=object)
    return safe.to_csv(index=False).encode()


def guard_formula(text: str) -> str:
    """Prepend an apostrophe to a text that a spreadsheet would compute.

    Args:
        text: Any text.

    Returns:
        The text, guarded if necessary.

    >>> guard_formula("=1+1"), guard_formula("a-b"), guard_formula("'=1")
    ("'=1+1", 'a-b', "''=1")
    """
    return f"'{text}" if _FORMULA.match(text) else text


def unguard_formula(text: str) -> str:
    """Undo `guard_formula`.

    Args:
        text: A text that it returned.

    Returns:
        The text that it was given.

    >>> [unguard_formula(guard_formula(text)) for text in ("=1+1", "-0.5", "''@a", "'a", "")]
    ['=1+1', '-0.5', "''@a", "'a", '']
    """
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text
