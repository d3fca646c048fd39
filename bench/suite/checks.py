"""Check what several sections of a suite have in common: names, labels and lists of eps."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.core import registry
from bench.core.errors import SuiteError, nearest
from bench.core.validation import Validator


def find_extension(check: Validator, kind: str, raw: Any, key: str, base: Path) -> Any:
    """Find the attack, model or data set that a table names.

    Args:
        check: Collects the mistakes.
        kind: "attacks", "models" or "datasets".
        raw: The table as read from TOML.
        key: Its key in the file.
        base: Folder that file names start from.

    Returns:
        The record or factory; None if there is none.
    """
    name = raw.get("name") if isinstance(raw, dict) else None
    if not isinstance(name, str):
        return None
    try:
        return registry.find(kind, name, base)
    except SuiteError as error:
        for problem in error.problems:
            check.say(f"{key}.name", problem)
        return None


def check_label(
    check: Validator, key: str, kind: str, label: str | None, known: Collection[str]
) -> None:
    """Check that a label exists.

    Args:
        check: Collects the mistakes.
        key: Key of the label in the file.
        kind: "model" or "attack", for the message.
        label: The label; None passes.
        known: All labels that may be named.
    """
    if label is not None and label not in known:
        check.say(key, f"no {kind} has the label '{label}'; {nearest(label, known)}")


def read_radii(
    check: Validator, radii: Sequence[float | str], key: str
) -> Iterator[tuple[str, float | str, float]]:
    """Read a list of eps.

    Args:
        check: Collects the mistakes: an empty list, values that are no radius, repeated values.
        radii: Numbers, or fractions as text.
        key: Key of the list in the file.

    Yields:
        Key, value as written and value as a number of each distinct eps.
    """
    if not radii:
        check.say(key, "expected at least one eps, got an empty list")
    seen: set[float] = set()
    for index, written in enumerate(radii):
        at = f"{key}[{index}]"
        value = check.radius(written, at)
        if value is None:
            continue
        if value in seen:
            check.say(at, f"expected each eps once, got {format_radius(written)} again")
            continue
        seen.add(value)
        yield at, written, value


def format_radius(written: float | str) -> str:
    """Format an eps as tables show it.

    >>> format_radius("8/255"), format_radius(0.10)
    ('8/255', '0.1')

    Args:
        written: A number, or a fraction as text.

    Returns:
        The text as written; a number in its shortest form.
    """
    return written if isinstance(written, str) else f"{written:g}"
