"""The three errors that bench raises on purpose; anything else is a bug and shows its traceback.

Every message is one sentence: where, what was expected, what was got, what to do.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path

from bench.core.sanitize import escape_controls


class SuiteError(Exception):
    """The user's mistake: a suite, an option, a file or a device that is not as it must be.

    Holds one sentence per mistake, so that all mistakes of a suite are told at once.
    The command line prints them without a traceback and exits with 2.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class MissingDataError(SuiteError):
    """Files of a data set are not where they are looked for: a plan can be shown without them."""


class ContractError(Exception):
    """A plug-in (model, attack, data set) broke its promise; the runner makes it a failed cell."""


class RecordError(Exception):
    """Records on disk are not what they say they are; they are named, never guessed at."""


class RobustnessWarning(UserWarning):
    """A robust accuracy was measured, and there is reason to doubt it."""


LONGEST = 500
"""Characters of what an exception says that are told, at most."""


def first_line(error: BaseException) -> str:
    """The first line of what an exception says that says anything; its class's name if none does.

    Safe to show: of any length, with any characters, and of an exception that raises when it is
    asked what it says.
    """
    try:
        told = str.__str__(str(error))  # a text of a class of its own might answer otherwise
    except KeyboardInterrupt:
        raise
    except BaseException:  # a stranger's exception may do anything
        told = ""
    lines = (line.strip() for line in told[: 100 * LONGEST].splitlines())
    first = next((line for line in lines if line), "")
    return escape_controls(first[:LONGEST]) + ("..." if len(first) > LONGEST else "") or _class(
        error
    )


def describe(error: BaseException) -> str:
    """An exception in one line: its class, and what it says, if that is anything.

    >>> describe(ValueError("no such class\\nsecond line")), describe(KeyError())
    ('ValueError: no such class', 'KeyError')
    """
    name, first = _class(error), first_line(error)
    return name if first == name else f"{name}: {first}"


def location(error: BaseException) -> str:
    """The last place in the code that an exception passed, "file.py:12"; "" if it passed none."""
    trace = BaseException.__dict__["__traceback__"].__get__(error)
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    return f"{escape_controls(Path(trace.tb_frame.f_code.co_filename).name)}:{trace.tb_lineno}"


def _class(error: BaseException) -> str:
    return escape_controls(type.__dict__["__name__"].__get__(type(error))[:LONGEST])


SHORT = 40
"""More known names than this are counted, not listed."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The tail of an "unknown name" sentence: the nearest known names, then all of them if few.

    >>> nearest("pdg", ["fgsm", "pgd"])
    "did you mean 'pgd'? known: fgsm, pgd"
    """
    names = sorted(known)
    folded = {each.casefold(): each for each in names}
    few = len(names) <= SHORT
    found = difflib.get_close_matches(name.casefold(), folded, n=1 if few else 3, cutoff=0.5)
    close = " or ".join(f"'{folded[each]}'" for each in found)
    hint = f"did you mean {close}? " if close else ""
    if not few:
        return f"{hint}known: {len(names)} names"
    return f"{hint}known: {', '.join(names) if names else '(none)'}"
