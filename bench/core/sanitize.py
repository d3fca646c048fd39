"""Keep characters that a terminal interprets out of everything that is shown.

An escape sequence in a label moves the cursor, hides lines or renames the window of the reader; a
bidirectional control shows a name as another. A suite with one is refused; in the files of a run
and in messages, which may quote anything, such characters are escaped.
Source: Boucher and Anderson 2021, Trojan Source, https://arxiv.org/abs/2111.00169
"""

import re
from collections.abc import Iterator
from typing import Any

_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line feed, line separators, bidirectional controls, and halves of
characters, which no file can hold."""
DEEPEST = 60
"""Deepest nesting of tables that is accepted."""


def escape_controls(text: str) -> str:
    r"""Escape the characters that a terminal interprets, as Python's repr does.

    >>> escape_controls("a\x1b[31mb, é")
    'a\\x1b[31mb, é'

    Args:
        text: Any text.

    Returns:
        Text safe to show.
    """
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def find_control_characters(raw: Any) -> str:
    r"""Find text with control characters in nested tables and lists.

    >>> find_control_characters({"models": [{"label": "net\x1b[8m"}]})
    "models[0].label: expected text without control characters, got 'net\\x1b[8m'"

    Args:
        raw: Tables, lists and scalars.

    Returns:
        One sentence about the first offence; empty if there is none.
    """
    return next(_offences(raw, "", 0), "")


def _offences(raw: Any, at: str, depth: int) -> Iterator[str]:
    """Yield a sentence for each text with control characters."""
    if depth > DEEPEST:
        yield f"{at[:100]}: nested more than {DEEPEST} deep"
    elif isinstance(raw, str):
        if _OBEYED.search(raw):
            problem = f"expected text without control characters, got {raw[:100]!r}"
            yield f"{at[:100]}: {problem}" if at else problem
    elif isinstance(raw, dict):
        for key, value in raw.items():
            yield from _offences(key, f"{at} (a key)".strip(), depth + 1)
            yield from _offences(value, f"{at}.{key}" if at else str(key), depth + 1)
    elif isinstance(raw, list | tuple):
        for index, value in enumerate(raw):
            yield from _offences(value, f"{at}[{index}]", depth + 1)


def escape_nested(raw: Any, depth: int = 0) -> Any:
    """Escape every text in nested tables and lists, such as messages of foreign code.

    Args:
        raw: Tables, lists and scalars.
        depth: Depth of `raw` in the outermost value.

    Returns:
        The same structure, escaped.

    Raises:
        ValueError: The nesting is deeper than `DEEPEST`.
    """
    if depth > DEEPEST:
        raise ValueError(f"nested more than {DEEPEST} deep")
    if isinstance(raw, str):
        return escape_controls(raw)
    if isinstance(raw, dict):
        return {escape_controls(key): escape_nested(value, depth + 1) for key, value in raw.items()}
    return [escape_nested(value, depth + 1) for value in raw] if isinstance(raw, list) else raw
