"""One file of the user's, checked key by key: every mistake gathered, each told in a sentence.

Dataclasses say what may stand in the file; their annotations are the rules (pydantic reads them).
"""

import dataclasses
import inspect
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from bench.core import sanitize
from bench.core.errors import SuiteError, nearest

SHOWN = 600
"""Letters of a sentence: it may quote what it is about, and that may be a megabyte."""


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """The tables of a TOML text; `where` names it in the message.

    Raises: SuiteError with line and column if it is not TOML, if a text in it holds characters that
    a terminal obeys, or a whole number more than 64 bits.
    """
    try:
        raw = tomllib.loads(text)
    except ValueError as error:  # a number of thousands of digits is none to Python either
        raise SuiteError(f"{where}: not valid TOML: {str(error)[:SHOWN]}") from error
    except RecursionError as error:
        raise SuiteError(f"{where}: not valid TOML: nested too deep") from error
    told = sanitize.find_control_characters(raw) or next(_too_wide(raw, ""), "")
    if told:
        raise SuiteError(f"{where}: {told}")
    return raw


def _too_wide(raw: Any, at: str) -> Iterator[str]:
    """Whole numbers that TOML does not promise, and no float or tensor holds."""
    if isinstance(raw, int) and not -(2**63) <= raw < 2**63:
        yield f"{at[:100]}: expected a whole number of 64 bits, got more"
    elif isinstance(raw, dict):
        for key, value in raw.items():
            yield from _too_wide(value, join_keys(at, key))
    elif isinstance(raw, list):
        for index, value in enumerate(raw):
            yield from _too_wide(value, f"{at}[{index}]")


def read_text(path: Path, what: str) -> str:
    """The text of a file that is to be read as `what` ("a suite").

    Raises: SuiteError if it is no readable text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a name that no file can have
        raise SuiteError(f"{path}: could not be read as {what}: {error}") from error


class Validator:
    """Gathers what is wrong with the file called `where`."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.problems: list[str] = []

    def stop_if_wrong(self) -> None:
        """Raises: SuiteError with every mistake gathered, if there is one."""
        if self.problems:
            raise SuiteError(*self.problems)

    def say(self, key: str, sentence: str) -> None:
        parts = (self.where, key.strip("."), " ".join(sentence.split()))
        told = ": ".join(part for part in parts if part)
        self.problems.append(told if len(told) <= SHOWN else f"{told[:SHOWN]}…")

    def each(self, raw: dict[str, Any], key: str, read: Callable[[Any, str], Any]) -> Iterator[Any]:
        entries = raw.get(key, [])
        for index, entry in enumerate(entries if isinstance(entries, list) else []):
            found = read(entry, f"{key}[{index}]")
            if found is not None:
                yield found

    def fill(self, kind: type, raw: Any, key: str) -> Any:
        """An instance of the dataclass `kind` from a TOML table; None, with reasons, if it fails.

        Keys that are unknown are told and left out, so that the rest is still checked.
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
        """`raw` if it is what the annotation `hint` says; else the first reason why it is not."""
        try:
            return TypeAdapter(hint).validate_python(raw, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            message = first["msg"].removeprefix("Value error, ")
            if first["type"] == "greater_than_equal":
                message = f"expected at least {first['ctx']['ge']}"
            self.say(key, f"{message[0].lower()}{message[1:]}, got {raw!r}")
            return None
        except ArithmeticError as error:  # a number such as "eps/0" that a checker computed with
            self.say(key, f"{error}, got {raw!r}")
            return None

    def radius(self, written: float | str, key: str) -> float | None:
        """An eps as a number; None, with the reason, if it is written as none."""
        try:
            return parse_fraction(written)
        except (ValueError, ArithmeticError):
            self.say(key, f"expected a number or a fraction such as '8/255', got {written!r}")
            return None

    def arguments(
        self, factory: Callable[..., Any], params: Any, key: str, given: set[str]
    ) -> None:
        """Parameters of a factory by its signature: unknown and missing ones are mistakes.

        `given` are those that bench passes itself; params that are no table are told elsewhere.
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
        for label, count in Counter(labels).items():
            if count > 1:
                self.say(key, f"expected each label once, got '{label}' {count} times")


def parse_fraction(written: float | str) -> float:
    """A length as a number: a number, or a fraction written as text, whose parts may have decimals
    ("0.5/255"). The one reader of every setting that is a length, be it a radius or a step.

    Raises: ValueError if the text is neither; ZeroDivisionError for "1/0".

    >>> fraction("8/255") == 8 / 255 and fraction("0.5/255") == 0.5 / 255 and fraction("0.1") == 0.1
    True
    """
    if not isinstance(written, str):
        return float(written)
    above, slash, below = written.partition("/")
    return float(above) / float(below) if slash else float(above)


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def join_keys(key: str, name: str) -> str:
    """The key of `name` in the table called `key`.

    >>> dot("data", "name"), dot("", "seed")
    ('data.name', 'seed')
    """
    return ".".join(part for part in (key, name) if part)
