"""The three errors that bench raises on purpose; anything else is a bug and shows its traceback.

Every message is one sentence: where, what was expected, what was got, what to do.
"""

import difflib
from collections.abc import Iterable


class SuiteError(Exception):
    """The user's mistake: a suite, an option, a file or a device that is not as it must be.

    Holds one sentence per mistake, so that all mistakes of a suite are told at once.
    The command line prints them without a traceback and exits with 2.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ContractError(Exception):
    """A plug-in (model, attack, data set) broke its promise; the runner makes it a failed cell."""


class RecordError(Exception):
    """Records on disk are not what they say they are; they are named, never guessed at."""


class RobustnessWarning(UserWarning):
    """A robust accuracy was measured, and there is reason to doubt it."""


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
