"""Validate a user's file key by key and report all mistakes at once, one sentence each.

Dataclasses say what may be in the file; their annotations are the rules, which pydantic checks.
"""

import contextlib
import dataclasses
import inspect
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import ByteSize, TypeAdapter, ValidationError

from bench.core import sanitize
from bench.core.errors import SuiteError, first_line, has_similar, nearest

SHOWN = 600
"""Most characters of a sentence: it may quote a value of a megabyte."""


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """Parse a TOML text.

    Args:
        text: The text.
        where: Name of the setting or file, with which error messages begin.

    Returns:
        The tables.

    Raises:
        SuiteError: The text is not TOML (with line and column), holds control characters or a whole
            number of more than 64 bits.
    """
    try:
        raw = tomllib.loads(text)
    except ValueError as error:  # a number of thousands of digits is none to Python either
        raise SuiteError(f"{where}: not valid TOML: {str(error)[:SHOWN]}") from error
    except RecursionError as error:
        raise SuiteError(f"{where}: not valid TOML: nested too deep") from error
    problem = sanitize.find_control_characters(raw) or next(_too_wide(raw, ""), "")
    if problem:
        raise SuiteError(f"{where}: {problem}")
    return raw


def _too_wide(raw: Any, at: str) -> Iterator[str]:
    """Yield a sentence for each whole number of more than 64 bits, which no tensor holds."""
    if isinstance(raw, int) and not -(2**63) <= raw < 2**63:
        yield f"{at[:100]}: expected a whole number of 64 bits, got more"
    elif isinstance(raw, dict):
        for key, value in raw.items():
            yield from _too_wide(value, join_keys(at, key))
    elif isinstance(raw, list):
        for index, value in enumerate(raw):
            yield from _too_wide(value, f"{at}[{index}]")


def read_text(path: Path, what: str) -> str:
    """Read a text file.

    Args:
        path: Path of the file.
        what: What the file is, for the message, such as "a suite".

    Returns:
        The text.

    Raises:
        SuiteError: The file cannot be read as UTF-8 text.
    """
    if path.is_dir():
        raise SuiteError(
            f"{path}: could not be read as {what}: expected a file, found a folder; name a file"
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a name that no file can have
        raise SuiteError(f"{path}: could not be read as {what}: {first_line(error)}") from error


class Validator:
    """Collects the mistakes in one file."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.problems: list[str] = []

    def stop_if_wrong(self) -> None:
        """Report the collected mistakes, if there are any.

        Raises:
            SuiteError: There is at least one mistake.
        """
        if self.problems:
            raise SuiteError(*self.problems)

    def say(self, key: str, sentence: str) -> None:
        """Add a mistake.

        Args:
            key: Key in the file, such as "attacks[0].eps".
            sentence: What was expected and what was found.
        """
        parts = (self.where, key.strip("."), " ".join(sentence.split()))
        problem = ": ".join(part for part in parts if part)
        self.problems.append(problem if len(problem) <= SHOWN else f"{problem[:SHOWN]}…")

    def each(self, raw: dict[str, Any], key: str, read: Callable[[Any, str], Any]) -> Iterator[Any]:
        """Read every entry of an array of tables.

        Args:
            raw: The table that holds the array.
            key: Key of the array.
            read: (entry, key) -> value, or None after a mistake.

        Yields:
            The values that are not None.
        """
        entries = raw.get(key, [])
        for index, entry in enumerate(entries if isinstance(entries, list) else []):
            value = read(entry, f"{key}[{index}]")
            if value is not None:
                yield value

    def fill(self, kind: type, raw: Any, key: str) -> Any:
        """Build a dataclass from a table; its annotations are the rules.

        Unknown keys are reported and left out, so that the rest is still checked.

        Args:
            kind: The dataclass.
            raw: Value as read from TOML.
            key: Key in the file, such as "attacks[0].eps".

        Returns:
            An instance; None if there was a mistake.
        """
        if not isinstance(raw, dict):
            self.say(key, f"expected a table, got {raw!r}")
            return None
        known = [field.name for field in dataclasses.fields(kind)]
        for name in (name for name in raw if name not in known):
            self.say(join_keys(key, name), f"unknown key; {nearest(name, known)}")
        hints = get_type_hints(kind, include_extras=True)
        values, before = {}, len(self.problems)
        for field in dataclasses.fields(kind):
            at = join_keys(key, field.name)
            if field.name in raw:
                values[field.name] = self.value(hints[field.name], raw[field.name], at)
            elif _required(field):
                self.say(at, "expected a value, got nothing")
        if len(self.problems) > before:
            return None
        try:
            return kind(**values)
        except ValueError as error:  # fields that do not go together
            self.say(key, str(error))
            return None

    def value(self, hint: Any, raw: Any, key: str) -> Any:
        """Validate a value by an annotation.

        Args:
            hint: The annotation.
            raw: Value as read from TOML.
            key: Key in the file, such as "attacks[0].eps".

        Returns:
            The value; None if it is invalid, with the first reason reported.
        """
        try:
            return TypeAdapter(hint).validate_python(raw, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            message = first["msg"].removeprefix("Value error, ")
            message = message.replace("Input should be", "expected", 1)
            if first["type"] == "greater_than_equal":
                message = f"expected at least {first['ctx']['ge']}"
            if first["type"] == "literal_error" and isinstance(raw, str):
                known = re.findall(r"'([^']*)'", first["ctx"]["expected"])
                message += f" ({nearest(raw, known).partition('? ')[0]}?)" * has_similar(raw, known)
            self.say(key, f"{message[0].lower()}{message[1:]}, got {raw!r}")
            return None
        except ArithmeticError as error:  # a number such as "eps/0" that a checker computed with
            self.say(key, f"{error}, got {raw!r}")
            return None

    def radius(self, written: float | str, key: str) -> float | None:
        """Read an eps.

        Args:
            written: A number or a fraction as text.
            key: Key in the file, such as "attacks[0].eps".

        Returns:
            The number; None if it is invalid.
        """
        try:
            return parse_fraction(written)
        except (ValueError, ArithmeticError):
            self.say(key, f"expected a number or a fraction such as '8/255', got {written!r}")
            return None

    def arguments(
        self, factory: Callable[..., Any], params: Any, key: str, given: set[str]
    ) -> None:
        """Check parameters against the signature of a factory.

        Args:
            factory: The callable.
            params: Parameters by name; anything but a table is reported elsewhere.
            key: Key in the file, such as "attacks[0].eps".
            given: Names that bench passes itself.
        """
        params = params if isinstance(params, dict) else {}
        try:
            signature = inspect.signature(factory).parameters.values()
        except ValueError:  # some callables written in C have none
            return
        if any(p.kind is p.VAR_KEYWORD for p in signature):
            known = None
        else:
            known = [p.name for p in signature if p.name not in given]
        for name in params:
            if known is not None and name not in known:
                self.say(join_keys(key, name), f"unknown parameter; {nearest(name, known)}")
        for p in signature:
            required = p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
            if required and p.name not in params and p.name not in given:
                self.say(join_keys(key, p.name), "expected a value, got nothing")

    def unique(self, key: str, labels: list[str]) -> None:
        """Check that labels differ.

        Args:
            key: Key in the file, such as "attacks[0].eps".
            labels: The labels.
        """
        for label, count in Counter(labels).items():
            if count > 1:
                self.say(key, f"expected each label once, got '{label}' {count} times")


def parse_fraction(written: float | str) -> float:
    """Convert a number or a fraction to a float.

    All settings that are lengths, such as radii and step sizes, are read by this function. Both
    parts of a fraction may have decimals.

    >>> [parse_fraction(text) for text in ("1/4", "0.5/2", "0.1")]
    [0.25, 0.25, 0.1]

    Args:
        written: A number, or text such as "8/255" or "0.1".

    Returns:
        The number.

    Raises:
        ValueError: The text is neither.
        ZeroDivisionError: The denominator is 0.
    """
    if not isinstance(written, str):
        return float(written)
    above, slash, below = written.partition("/")
    return float(above) / float(below) if slash else float(above)


def byte_size(where: str, text: str) -> ByteSize:
    """Parse a size of memory or files.

    Args:
        where: The option that the size was given for.
        text: A number and a unit, such as "1.5 GiB" or "20MB".

    Returns:
        The size in bytes.

    Raises:
        SuiteError: The text is not a size.

    >>> byte_size("--memory-limit", "1.5 GiB"), byte_size("--memory-limit", "20MB")
    (1610612736, 20000000)
    """
    with contextlib.suppress(ValidationError):
        # ByteSize reads a beginning: "1,5GB" and "1.5.GiB" as one byte.
        if re.fullmatch(r"\s*\d{1,12}(\.\d+)?\s*[a-z]+\s*", text, re.ASCII | re.IGNORECASE):
            return TypeAdapter(ByteSize).validate_python(text)
    raise SuiteError(f"{where} '{text}': expected a number and a unit, such as 1500MB or 2GiB")


def _required(field: dataclasses.Field[Any]) -> bool:
    """Return whether a field has no default."""
    return field.default is field.default_factory is dataclasses.MISSING


def join_keys(key: str, name: str) -> str:
    """Join the key of a table and a name in it.

    >>> join_keys("data", "name"), join_keys("", "seed")
    ('data.name', 'seed')

    Args:
        key: Key of the table; empty for the top level.
        name: Name in the table.

    Returns:
        The dotted key.
    """
    return ".".join(part for part in (key, name) if part)
