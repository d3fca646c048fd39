"""Count the passes of the work that runs and report how many are expected still.

The engine's loop, an ensemble and the loop of an external attack count here; whoever executes a
work unit listens. A pass is a forward with its backward of one image; a forward alone counts as
half of one. Where nobody listens, nothing is counted.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

PERIOD = 0.5
"""Seconds between two reports."""
clock = time.monotonic
"""Seconds from an arbitrary start."""


class Progress(NamedTuple):
    """How far the passes of a work unit are."""

    passes: float
    """Made so far."""
    passes_left: float | None
    """Expected still; None if unknown."""
    seconds_left: float | None
    """What they take at the pace of those that were made; None if unknown."""


class PassCounter:
    """The passes of one work unit."""

    def __init__(self, listen: Callable[[Progress], None]) -> None:
        """Start at no passes.

        Args:
            listen: Receives a report at most every PERIOD seconds.
        """
        self.passes = 0.0
        """Made so far."""
        self._listen = listen
        self._extend: list[Callable[[float], float]] = []
        self._begun = self._next = 0.0

    def begin(self) -> None:
        """Note that passes begin: the time before the first of them is none of their pace."""
        if not self.passes:
            self._begun = clock()
            self._next = self._begun + PERIOD

    def add(self, passes: float) -> None:
        """Count passes that were made.

        Args:
            passes: Their number.
        """
        self.passes += passes

    def is_due(self) -> bool:
        """Return whether the last report was long enough ago.

        Returns:
            True if `report` should be called.
        """
        return clock() >= self._next

    def report(self, left: float | None) -> None:
        """Report the passes.

        Args:
            left: Passes that the attack at work is expected to make still; None if unknown.
        """
        now = clock()
        self._next = now + PERIOD
        seconds = None
        if left is not None:
            for extend in reversed(self._extend):
                left = extend(left)
            if self.passes:
                seconds = left * (now - self._begun) / self.passes
        self._listen(Progress(self.passes, left, seconds))

    @contextmanager
    def extend_left(self, extend: Callable[[float], float]) -> Iterator[None]:
        """Report of a part of the work what the whole is expected to need still.

        Args:
            extend: Passes that the part needs still -> those of the whole.

        Yields:
            With reports extended.
        """
        self._extend.append(extend)
        try:
            yield
        finally:
            self._extend.pop()


_counter: ContextVar[PassCounter | None] = ContextVar("counter", default=None)


def find_counter() -> PassCounter | None:
    """Find the counter of the work unit that runs.

    Returns:
        The counter; None if nobody listens.
    """
    return _counter.get()


@contextmanager
def count_unit(listen: Callable[[Progress], None] | None) -> Iterator[None]:
    """Count the passes of a work unit.

    Args:
        listen: Receives the reports; None: nothing is counted.

    Yields:
        With passes counted.
    """
    token = _counter.set(None if listen is None else PassCounter(listen))
    try:
        yield
    finally:
        _counter.reset(token)
