"""Sizes of memory and files as people write them."""

import re

from bench.core.errors import SuiteError

_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*([KMGT])(i?)B", re.IGNORECASE)


def parse_size(where: str, text: str) -> int:
    """Bytes.

    >>> parse("--memory-limit", "1.5 GiB"), parse("--memory-limit", "20MB")
    (1610612736, 20000000)

    Raises: SuiteError for a size that is none, said of `where`.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise SuiteError(f"{where} '{text}': expected a number and a unit, such as 1500MB or 2GiB")
    unit = (1024 if found[3] else 1000) ** ("KMGT".index(found[2].upper()) + 1)
    return int(float(found[1]) * unit)


def format_size(size: int) -> str:
    """A number of bytes for people.

    >>> written(1610612736)
    '1.50 GiB'
    """
    return f"{size / 2**30:.2f} GiB"
