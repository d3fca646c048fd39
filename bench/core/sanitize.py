"""What may stand in a text that people are shown: no character that a terminal obeys.

An escape sequence in a label moves the cursor, hides lines or renames the window of whoever reads
it; a bidirectional control shows a name as another. A suite with one is refused; in the files of a
run, and in messages, which may quote anything, it is escape_controls out.
Source: Boucher and Anderson 2021, Trojan Source, https://arxiv.org/abs/2111.00169
"""

import re
from collections.abc import Iterator
from typing import Any

_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line feed, line separators, bidirectional controls, and halves of
characters, which no file can hold."""
DEEPEST = 60
"""Tables in tables: what is nested deeper is no file of ours."""


def escape_controls(text: str) -> str:
    r"""The text with each of those characters escape_controls out, as Python spells it.

    >>> escape_controls("a\x1b[31mb, é")
    'a\\x1b[31mb, é'
    """
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def find_control_characters(raw: Any) -> str:
    r"""What is wrong with the texts in nested tables and lists, "" if nothing is.

    >>> find_control_characters({"models": [{"label": "net\x1b[8m"}]})
    "models[0].label: expected text without control characters, got 'net\\x1b[8m'"
    """
    return next(_offences(raw, "", 0), "")


def _offences(raw: Any, at: str, depth: int) -> Iterator[str]:
    if depth > DEEPEST:
        yield f"{at[:100]}: nested more than {DEEPEST} deep"
    elif isinstance(raw, str):
        if _OBEYED.search(raw):
            told = f"expected text without control characters, got {raw[:100]!r}"
            yield f"{at[:100]}: {told}" if at else told
    elif isinstance(raw, dict):
        for key, value in raw.items():
            yield from _offences(key, f"{at} (a key)".strip(), depth + 1)
            yield from _offences(value, f"{at}.{key}" if at else str(key), depth + 1)
    elif isinstance(raw, list | tuple):
        for index, value in enumerate(raw):
            yield from _offences(value, f"{at}[{index}]", depth + 1)


def escape_nested(raw: Any, depth: int = 0) -> Any:
    """Nested tables and lists with every text `escape_controls`: a file of a run may quote what a
    stranger's code raised, so such a text is no find_control_characters there.

    Raises: ValueError if they are nested deeper than any of ours.
    """
    if depth > DEEPEST:
        raise ValueError(f"nested more than {DEEPEST} deep")
    if isinstance(raw, str):
        return escape_controls(raw)
    if isinstance(raw, dict):
        return {escape_controls(key): escape_nested(value, depth + 1) for key, value in raw.items()}
    return [escape_nested(value, depth + 1) for value in raw] if isinstance(raw, list) else raw
