"""Report how many passes an external attack makes, by the calls of its model.

The attack's loop is not known. What its rows are expected to need is what those of finished batches
did; before the first one has finished, what its params say, if they bound it.
"""

from collections.abc import Callable

from bench.core.contracts.attack import AttackSpec
from bench.engine.progress import find_counter
from bench.suite.cost import count_passes


class ExternalProgress:
    """The passes of an external attack on all rows: examples times eps."""

    def __init__(self, spec: AttackSpec, rows: int) -> None:
        """Start at no passes.

        Args:
            spec: An external attack with its params.
            rows: Examples times eps that it will be run on.
        """
        self._counter = find_counter()
        forwards, backwards = count_passes(spec)
        self._bound = None if forwards is None else (forwards + (backwards or 0.0)) / 2
        self._left, self._batch = rows, 0
        """Rows of which no batch has begun, and of the batch at work."""
        self._done, self._made, self._of_batch = 0, 0.0, 0.0
        """Rows of finished batches, their passes, and those of the batch at work."""

    def begin_batch(self, rows: int) -> Callable[[int], None] | None:
        """Begin a batch, after the one before it has finished.

        Args:
            rows: Its rows.

        Returns:
            What to call with the rows of each pass; None if nobody listens.
        """
        if self._counter is None:
            return None
        self._done, self._made = self._done + self._batch, self._made + self._of_batch
        self._left, self._batch, self._of_batch = self._left - rows, rows, 0.0
        self._counter.begin()
        return self._add_pass

    def _add_pass(self, rows: int) -> None:
        """Count the rows of a forward or a backward pass."""
        assert self._counter is not None
        self._counter.add(rows / 2)
        self._of_batch += rows / 2
        if self._counter.is_due():
            self._counter.report(self._count_left())

    def _count_left(self) -> float | None:
        each = self._made / self._done if self._done else self._bound
        if each is None:
            return None
        # A batch that has made what was expected of it is about to finish, or everything is off.
        ahead = max(each * self._batch - self._of_batch, 0.0)
        return ahead + max(each, 0.0 if self._done else self._of_batch / self._batch) * self._left
