"""Format numbers as text.

Tables, reports and published pages all call these functions, so the same count is rounded the
same way everywhere. A missing number is a dash, never a zero.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

DASH = "—"
"""Text of a missing number."""
NORM_NAMES = {"linf": "L-inf", "l2": "L2", "l1": "L1", "l0": "L0"}
"""Display names of the norms."""
_UNIT = r"%|pp|x|ms|s|min \d\d s|h \d\d min"
_NUMERIC = re.compile(
    rf"(—|[<>]?[+-]?\d[\d.]*(e[+-]?\d+)?)( ?({_UNIT}))?(/\d+)?( \[[\d., ]+\])*", re.ASCII
)


def is_missing(value: Any) -> bool:
    """Check whether a value is None, NaN, NA or blank text.

    Args:
        value: Any scalar.

    Returns:
        True if there is nothing to print.

    Example:
        >>> is_missing(float("nan")), is_missing(" "), is_missing(0)
        (True, True, False)
    """
    return value is None or bool(pd.isna(value)) or (isinstance(value, str) and not value.strip())


def format_text(value: Any) -> str:
    r"""Format a value as one line of text.

    Line breaks and control characters become single spaces: they would break every table format.

    Args:
        value: Any scalar.

    Returns:
        The text, or a dash if the value is missing.

    Example:
        >>> format_text("two\nlines"), format_text(None)
        ('two lines', '—')
    """
    if is_missing(value):
        return DASH
    marks = (" " if unicodedata.category(mark) == "Cc" else mark for mark in str(value))
    return " ".join("".join(marks).split())


def format_percent(share: Any, places: int = 1) -> str:
    """Format a share in percent.

    Only an exact 0 or 1 prints as 0 or 100 %: rounding a share never reaches either.

    Args:
        share: A number in [0, 1], or a missing value.
        places: Decimal places.

    Returns:
        The percentage with its sign, or a dash.

    Example:
        >>> format_percent(0.93125), format_percent(0.99999)
        ('93.1 %', '>99.9 %')
        >>> format_percent(0.00001), format_percent(1.0)
        ('<0.1 %', '100.0 %')
    """
    if is_missing(share):
        return DASH
    share = max(float(share), 0.0)  # a bound of -1e-17 is 0, not "-0.0"
    least = 10.0**-places
    if 0 < share < 1 and round(100 * share, places) in (0, 100):
        return f"<{least:.{places}f} %" if share < 0.5 else f">{100 - least:.{places}f} %"
    return f"{100 * share:.{places}f} %"


def format_points(difference: Any, places: int = 1) -> str:
    """Format a difference of two percentages in percentage points, with its sign.

    Args:
        difference: Percentage points, or a missing value.
        places: Decimal places.

    Returns:
        The difference with the unit "pp", or a dash.

    Example:
        >>> format_points(0.31), format_points(-12.345, 2), format_points(-0.04)
        ('+0.3 pp', '-12.35 pp', '0.0 pp')
    """
    if is_missing(difference):
        return DASH
    rounded = round(float(difference), places)
    return f"{rounded:+.{places}f} pp" if rounded else f"{0:.{places}f} pp"


def format_interval(low: Any, high: Any) -> str:
    """Format an interval of shares in percent.

    Rounding never collapses an interval to 0 or 100.

    Args:
        low: Lower bound in [0, 1], or a missing value.
        high: Upper bound in [0, 1], or a missing value.

    Returns:
        Both bounds in brackets, or a dash if either is missing.

    Example:
        >>> format_interval(0.926, 0.936), format_interval(0.0, 0.0004)
        ('[92.6, 93.6]', '[0.0, 0.1]')
    """
    if is_missing(low) or is_missing(high):
        return DASH
    bottom = 0.999 if 0.9995 <= low < 1 else max(low, 0.0)
    top = 0.001 if 0 < high < 0.0005 and high > low else high
    return f"[{100 * bottom:.1f}, {100 * top:.1f}]"


def format_rate(k: Any, n: Any, low: Any, high: Any) -> str:
    """Format k of n in percent, with its interval.

    Args:
        k: Number of successes.
        n: Number of trials.
        low: Lower bound of the rate, or None to print no interval.
        high: Upper bound of the rate, or None to print no interval.

    Returns:
        The rate, or a dash if n is 0 or a count is missing.

    Example:
        >>> format_rate(931, 1000, 0.914, 0.945), format_rate(0, 0, None, None)
        ('93.1 % [91.4, 94.5]', '—')
    """
    if is_missing(k) or is_missing(n) or n == 0:
        return DASH
    share = format_percent(k / n)
    return share if is_missing(low) else f"{share} {format_interval(low, high)}"


def format_count(k: Any, n: Any) -> str:
    """Format the two counts of a rate.

    Args:
        k: Number of successes.
        n: Number of trials.

    Returns:
        "k/n", or a dash if either count is missing.

    Example:
        >>> format_count(931, 1000), format_count(None, 1000)
        ('931/1000', '—')
    """
    return DASH if is_missing(k) or is_missing(n) else f"{int(k)}/{int(n)}"


def format_whole(value: Any) -> str:
    """Format a single count.

    Args:
        value: A whole number, or a missing value.

    Returns:
        The number, or a dash.

    Example:
        >>> format_whole(3.0), format_whole(None)
        ('3', '—')
    """
    return DASH if is_missing(value) else str(int(value))


def format_seconds(value: Any) -> str:
    """Format a duration in a readable unit.

    Args:
        value: Seconds, or a missing value.

    Returns:
        The duration in ms, s, min or h, or a dash.

    Example:
        >>> format_seconds(0.0042), format_seconds(12.34)
        ('4.2 ms', '12.3 s')
        >>> format_seconds(185), format_seconds(7384)
        ('3 min 05 s', '2 h 03 min')
    """
    if is_missing(value):
        return DASH
    if value < 0.9995:
        return f"{format_number(1000 * value, 2)} ms"
    if value < 99.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_number(value: Any, digits: int = 3) -> str:
    """Format a number to a number of significant digits.

    The integer part is always printed in full.

    Args:
        value: A number, or a missing value.
        digits: Significant digits.

    Returns:
        The number, or a dash.

    Example:
        >>> format_number(0.012345), format_number(12345.6), format_number(1.5e-9)
        ('0.0123', '12346', '1.5e-09')
    """
    if is_missing(value):
        return DASH
    if math.isfinite(value) and abs(value) >= 10**digits:
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def format_factor(value: Any) -> str:
    """Format a ratio of two times or sizes.

    Args:
        value: The ratio, or a missing value.

    Returns:
        The ratio followed by "x", or a dash.

    Example:
        >>> format_factor(1.1234), format_factor(0.08)
        ('1.12x', '0.08x')
    """
    return DASH if is_missing(value) else f"{format_number(value)}x"


def format_plural(k: int, noun: str) -> str:
    """Format a count with its noun, in the plural unless the count is 1.

    Args:
        k: The count.
        noun: The noun in the singular; its plural takes an "s".

    Returns:
        The count and the noun.

    Example:
        >>> format_plural(1, "cell"), format_plural(2, "cell")
        ('1 cell', '2 cells')
    """
    return f"{k} {noun}" if k == 1 else f"{k} {noun}s"


def format_norm(norm: Any) -> str:
    """Format the name of a norm.

    Args:
        norm: A key of NORM_NAMES; any other value prints as it is.

    Returns:
        The display name, such as "L-inf".

    Example:
        >>> format_norm("linf")
        'L-inf'
    """
    return NORM_NAMES.get(norm, format_text(norm))


def format_eps(eps: Any, eps_texts: Mapping[float, str]) -> str:
    """Format an eps as the suite wrote it.

    Args:
        eps: The radius, or a missing value.
        eps_texts: Text of each eps, from `map_eps_texts`.

    Returns:
        The suite's text, else the number, else a dash.

    Example:
        >>> format_eps(8 / 255, {8 / 255: "8/255"}), format_eps(0.5, {})
        ('8/255', '0.5')
    """
    return DASH if is_missing(eps) else eps_texts.get(float(eps), format_number(eps, 4))


def map_eps_texts(table: pd.DataFrame) -> dict[float, str]:
    """Map each eps to the text that its suite wrote ("8/255"), else to the number.

    Args:
        table: A table with the columns eps and, unless an older version wrote it, eps_text.

    Returns:
        Text by eps; of several texts for one eps, the first.
    """
    if "eps_text" not in table:
        return {float(eps): format_number(eps, 4) for eps in table.get("eps", ())}
    eps_texts: dict[float, str] = {}
    for eps, text in zip(table["eps"], table["eps_text"], strict=True):
        shown = format_number(eps, 4) if is_missing(text) else format_text(text)
        eps_texts.setdefault(float(eps), shown)
    return eps_texts


def is_numeric(column: Iterable[str]) -> bool:
    """Check whether a column of text holds only numbers, dashes and blanks.

    Args:
        column: The cells; such a column is aligned right.

    Returns:
        True if it holds at least one number and no other text.

    Example:
        >>> is_numeric(["93.1 % [92.6, 93.6]", "— [1]", ""]), is_numeric(["8/255", "all"])
        (True, False)
    """
    cells = [cell for cell in column if cell]
    return any(cell != DASH for cell in cells) and all(map(_NUMERIC.fullmatch, cells))
