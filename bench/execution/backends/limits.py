"""Limits of time and memory of a worker process."""

from typing import NamedTuple

from bench.core import validation
from bench.core.errors import SuiteError


class Limits(NamedTuple):
    """Limits of a worker process, which is killed when it exceeds one; None: no limit."""

    seconds: float | None = None
    """Longest time without a heartbeat, which is a model call begun or ended."""
    memory: int | None = None
    """Resident bytes of the process, PyTorch's own included."""


def parse_limits(isolate: bool, seconds: float | None, memory: str | None) -> Limits | None:
    """Parse the options of isolation. A limit implies isolation.

    >>> parse_limits(False, None, "1.5 GiB")
    Limits(seconds=None, memory=1610612736)

    Args:
        isolate: Whether isolation is asked for.
        seconds: As given to `--time-limit`.
        memory: As given to `--memory-limit`, such as "4GiB".

    Returns:
        The limits; None if the run is not isolated.

    Raises:
        SuiteError: The size cannot be read, or the seconds are not above 0.
    """
    if seconds is not None and not seconds > 0:
        raise SuiteError(f"--time-limit: expected seconds above 0, got {seconds:g}")
    if not isolate and seconds is None and memory is None:
        return None
    if memory is None:
        return Limits(seconds)
    return Limits(seconds, validation.byte_size("--memory-limit", memory))
