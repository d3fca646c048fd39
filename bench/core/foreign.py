"""Call a user's factory of a model or a data set."""

from collections.abc import Callable
from typing import Any

from bench.core.errors import SuiteError, describe, own_location


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
