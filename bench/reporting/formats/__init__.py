"""One file per table format; here is what they share: how a number is spelled, how a file is kept.

Numbers become text in this package and nowhere before it, so a table, a report and a published
page cannot round the same count in two ways. A missing number is a dash, never a zero.

A format for readers (FORMAT) is given tables of text, one for programs (EXPORT) the rows of all
cells with their types. A file of this package that ends in either is found by being there.
"""

import importlib
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

DASH = "—"
NORMS = {"linf": "L-inf", "l2": "L2", "l1": "L1", "l0": "L0"}
_UNIT = r"%|pp|x|ms|s|min \d\d s|h \d\d min"
_NUMERIC = re.compile(
    rf"(—|[<>]?[+-]?\d[\d.]*(e[+-]?\d+)?)( ?({_UNIT}))?(/\d+)?( \[[\d., ]+\])*", re.ASCII
)


class Bold(str):
    """Text of a cell that is to stand out, in every format that can make it."""

    __slots__ = ()


class Table(NamedTuple):
    """One table of a publication, in words."""

    name: str
    """Letters, digits and dashes: for files and labels."""
    caption: str
    """What it shows, in a sentence or two."""
    frame: pd.DataFrame
    """Of text, Bold where it is to stand out."""
    details: Sequence[str]
    """Sentences that belong to it: what is bold and why, parameters, versions."""
    notes: Sequence[str]
    """Footnote k stands at place k - 1; the cells that mean it end in "[k]"."""
    source: Sequence[str]
    """Lines that say how it is made again."""


class Format(NamedTuple):
    """A table format for readers: a file of this package ends in one, called FORMAT."""

    suffix: str
    """Of the files it makes, with the dot."""
    render: Callable[[pd.DataFrame, str], str]
    """From a frame of text and a caption (may be empty) to the table, its own escaping done."""
    pages: Callable[[Sequence[Table]], dict[str, str]]
    """From all tables of a publication to its files, by name."""


class Export(NamedTuple):
    """A format for programs: a file of this package ends in one, called EXPORT."""

    suffix: str
    content: Callable[[pd.DataFrame], bytes]
    """From rows with types to a file; the same rows give the same bytes."""


def found(kind: str) -> Iterator[Any]:
    """Every FORMAT, or every EXPORT, of this package, in the order of its files' names."""
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        module = importlib.import_module(f"{__name__}.{path.stem}")
        if hasattr(module, kind):
            yield getattr(module, kind)


def slug(name: str) -> str:
    """A name of letters, digits and dashes: no label can leave a folder or break a command.

    >>> slug("LeNet, L-inf: 8/255"), slug("../..")
    ('lenet-l-inf-8-255', 'x')
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:80] or "x"


def absent(value: Any) -> bool:
    """Whether there is no number or word: None, NaN, NA or nothing but blanks.

    >>> absent(float("nan")), absent(" "), absent(0)
    (True, True, False)
    """
    return value is None or bool(pd.isna(value)) or (isinstance(value, str) and not value.strip())


def words(value: Any) -> str:
    """Text on one line, or a dash: line breaks and control characters would break every format.

    >>> words("two\\nlines"), words(None)
    ('two lines', '—')
    """
    if absent(value):
        return DASH
    kept = (" " if unicodedata.category(mark) == "Cc" else mark for mark in str(value))
    return " ".join("".join(kept).split())


def percent(share: Any, places: int = 1) -> str:
    """A share of 1 in percent; only exactly none or all prints as 0 or 100.

    >>> percent(0.93125), percent(0.99999), percent(0.00001), percent(1.0)
    ('93.1 %', '>99.9 %', '<0.1 %', '100.0 %')
    """
    if absent(share):
        return DASH
    share = max(float(share), 0.0)  # a bound of -1e-17 is 0, not "-0.0"
    least = 10.0**-places
    if 0 < share < 1 and round(100 * share, places) in (0, 100):
        return f"<{least:.{places}f} %" if share < 0.5 else f">{100 - least:.{places}f} %"
    return f"{100 * share:.{places}f} %"


def points(difference: Any, places: int = 1) -> str:
    """A difference of two shares in percentage points, with its sign.

    >>> points(0.31), points(-12.345, 2), points(-0.04), points(None)
    ('+0.3 pp', '-12.35 pp', '0.0 pp', '—')
    """
    if absent(difference):
        return DASH
    rounded = round(float(difference), places)
    return f"{rounded:+.{places}f} pp" if rounded else f"{0:.{places}f} pp"


def interval(low: Any, high: Any) -> str:
    """Both ends of an interval of shares, in percent; rounding never closes it at 0 or 100.

    >>> interval(0.926, 0.936), interval(0.0, 0.0004)
    ('[92.6, 93.6]', '[0.0, 0.1]')
    """
    if absent(low) or absent(high):
        return DASH
    bottom = 0.999 if 0.9995 <= low < 1 else max(low, 0.0)
    top = 0.001 if 0 < high < 0.0005 and high > low else high
    return f"[{100 * bottom:.1f}, {100 * top:.1f}]"


def rate(k: Any, n: Any, low: Any, high: Any) -> str:
    """k of n in percent with its interval; a dash where n is 0 or unknown.

    >>> rate(931, 1000, 0.914, 0.945), rate(0, 0, None, None)
    ('93.1 % [91.4, 94.5]', '—')
    """
    if absent(k) or absent(n) or n == 0:
        return DASH
    return percent(k / n) if absent(low) else f"{percent(k / n)} {interval(low, high)}"


def count(k: Any, n: Any) -> str:
    """The two counts a rate is made of.

    >>> count(931, 1000), count(None, 1000)
    ('931/1000', '—')
    """
    return DASH if absent(k) or absent(n) else f"{int(k)}/{int(n)}"


def seconds(value: Any) -> str:
    """A duration in the unit that people would say.

    >>> seconds(0.0042), seconds(12.34), seconds(185), seconds(7384)
    ('4.2 ms', '12.3 s', '3 min 05 s', '2 h 03 min')
    """
    if absent(value):
        return DASH
    if value < 0.9995:
        return f"{number(1000 * value, 2)} ms"
    if value < 99.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def number(value: Any, digits: int = 3) -> str:
    """A number to `digits` significant digits, its whole part never shortened.

    >>> number(0.012345), number(12345.6), number(1.5e-9), number(0)
    ('0.0123', '12346', '1.5e-09', '0')
    """
    if absent(value):
        return DASH
    if math.isfinite(value) and abs(value) >= 10**digits:
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def factor(value: Any) -> str:
    """A ratio of two times or sizes.

    >>> factor(1.1234), factor(0.08)
    ('1.12x', '0.08x')
    """
    return DASH if absent(value) else f"{number(value)}x"


def many(k: int, noun: str) -> str:
    """A count with its noun, in the plural but for one.

    >>> many(1, "cell"), many(2, "cell")
    ('1 cell', '2 cells')
    """
    return f"{k} {noun}" if k == 1 else f"{k} {noun}s"


def eps_names(table: pd.DataFrame) -> dict[float, str]:
    """From each eps to the text its suite wrote ("8/255"), else to the number."""
    if "eps_text" not in table:
        return {float(eps): number(eps, 4) for eps in table.get("eps", ())}
    names: dict[float, str] = {}
    for eps, text in zip(table["eps"], table["eps_text"], strict=True):
        names.setdefault(float(eps), number(eps, 4) if absent(text) else words(text))
    return names


def is_numeric(column: Iterable[str]) -> bool:
    """Whether a column of text holds nothing but numbers, dashes and blanks: it is set right.

    >>> is_numeric(["93.1 % [92.6, 93.6]", "— [1]", ""]), is_numeric(["8/255", "all"])
    (True, False)
    """
    cells = [cell for cell in column if cell]
    return any(cell != DASH for cell in cells) and all(map(_NUMERIC.fullmatch, cells))
