"""Call a user's factory of a model or a data set, and say where the user's code raised."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.core import source_hash
from bench.core.errors import SuiteError, describe, location
from bench.core.sanitize import escape_controls


def call_factory(where: str, factory: Callable[[], Any]) -> Any:
    """Call foreign code; what it raises becomes a SuiteError of one sentence.

    Args:
        where: Start of the error message.
        factory: Called without arguments.

    Returns:
        What it returns.

    Raises:
        SuiteError: It raised; the message names the exception and the last line it passed.
    """
    try:
        return factory()
    except (SuiteError, KeyboardInterrupt):
        raise
    except BaseException as error:  # the user's own code may raise anything
        raise SuiteError(f"{where}: {describe(error)} ({own_location(error)})") from error


def own_location(error: BaseException) -> str:
    """Return the last place in the user's own code that an exception passed.

    Args:
        error: Any exception.

    Returns:
        "file.py:12"; as `location` if it passed no file of the user's.
    """
    trace, found = BaseException.__dict__["__traceback__"].__get__(error), ""
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        if file.is_file() and source_hash.is_own(file):
            found = f"{escape_controls(file.name)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found or location(error)
