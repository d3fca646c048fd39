"""The three errors that bench raises on purpose; anything else is a bug and shows its traceback.

Every message is one sentence: where, what was expected, what was got, what to do.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path

from bench.core.sanitize import escape_controls


class SuiteError(Exception):
    """A mistake of the user in a suite, an option, a file or a device.

    Holds one sentence per mistake, so that all mistakes of a suite are reported at once. The
    command line prints them without a traceback and exits with 2.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class MissingDataError(SuiteError):
    """Files of a data set are missing; a plan can be shown without them."""


class ContractError(Exception):
    """A model, attack or data set broke its contract; the runner makes it a failed cell."""


class RecordError(Exception):
    """Records on disk are damaged or of another run; the message names them."""


class RobustnessWarning(UserWarning):
    """A robust accuracy was measured, and there is reason to doubt it."""


LONGEST = 500
"""Most characters of an exception's message that are shown."""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message that is not blank.

    Safe to show for any exception: the length is limited, control characters are escaped, and an
    exception whose `__str__` raises is named by its class. An error of the system is shown without
    its number.

    Args:
        error: Any exception.

    Returns:
        The line; the name of the exception's class if the message is blank.
    """
    try:
        reason = error.strerror if isinstance(error, OSError) else None
        where = f": {error.filename}" if isinstance(error, OSError) and error.filename else ""
        shown = f"{reason}{where}" if isinstance(reason, str) else str(error)
        message = str.__str__(shown)  # a subclass of str may override its methods
    except KeyboardInterrupt:
        raise
    except BaseException:  # foreign code: `__str__` may raise anything
        message = ""
    lines = (line.strip() for line in message[: 100 * LONGEST].splitlines())
    first = next((line for line in lines if line), "")
    return escape_controls(first[:LONGEST]) + ("..." if len(first) > LONGEST else "") or _class(
        error
    )


def describe(error: BaseException) -> str:
    r"""Describe an exception in one line: its class and its message, if it has one.

    >>> describe(ValueError("no such class\nsecond line")), describe(KeyError())
    ('ValueError: no such class', 'KeyError')

    Args:
        error: Any exception.

    Returns:
        "Class: message" or "Class".
    """
    name, first = _class(error), first_line(error)
    return name if first == name else f"{name}: {first}"


def location(error: BaseException) -> str:
    """Return the last place in the code that an exception passed.

    Args:
        error: Any exception.

    Returns:
        "file.py:12"; empty if the exception has no traceback.
    """
    trace = BaseException.__dict__["__traceback__"].__get__(error)
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    return f"{escape_controls(Path(trace.tb_frame.f_code.co_filename).name)}:{trace.tb_lineno}"


def _class(error: BaseException) -> str:
    """Return the name of an exception's class, also where the class overrides `__name__`."""
    return escape_controls(type.__dict__["__name__"].__get__(type(error))[:LONGEST])


def _is_longer(one: str, other: str) -> bool:
    """Return whether one of two names begins with the other, which has at least three letters."""
    return min(len(one), len(other)) >= 3 and (one.startswith(other) or other.startswith(one))


def has_similar(name: str, known: Iterable[str]) -> bool:
    """Return whether a known name differs from a name by a slip alone.

    >>> has_similar("pdg", ["fgsm", "pgd"]), has_similar("cw", ["fgsm", "pgd"])
    (True, False)

    Args:
        name: The unknown name.
        known: All known names.

    Returns:
        True if `nearest` would suggest one.
    """
    folded = [each.casefold() for each in known]
    return bool(difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5))


def suggest_params(*settings: str) -> str:
    """Format params of a data set for a sentence, as a suite and as the command line state them.

    >>> suggest_params("download = true")
    'params = { download = true } in a suite or --param data.download=true'

    Args:
        *settings: "key = value", a value as in TOML.

    Returns:
        Both forms.
    """
    options = (f"--param data.{each.replace(' = ', '=')}" for each in settings)
    return f"params = {{ {', '.join(settings)} }} in a suite or {' '.join(options)}"


SHORT = 40
"""More known names than this are counted, not listed."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of an "unknown name" sentence: similar names, then all if they are few.

    >>> nearest("pdg", ["fgsm", "pgd"])
    "did you mean 'pgd'? known: fgsm, pgd"

    Args:
        name: The unknown name.
        known: All known names.

    Returns:
        The suggestions, with at most `SHORT` known names listed.
    """
    names = sorted(known)
    folded = {each.casefold(): each for each in names}
    few = len(names) <= SHORT
    wanted = name.casefold()
    matches = difflib.get_close_matches(wanted, folded, n=1 if few else 3, cutoff=0.5)
    if few and not difflib.get_close_matches(wanted, folded, n=1, cutoff=0.8):
        # A longer or shorter form of a name, such as "epsilon", is nearer than one of like letters.
        matches = [each for each in folded if _is_longer(wanted, each)][-1:] or matches
    close = " or ".join(f"'{folded[each]}'" for each in matches)
    hint = f"did you mean {close}? " if close else ""
    if not few:
        return f"{hint}known: {len(names)} names"
    return f"{hint}known: {', '.join(names) if names else '(none)'}"
