"""Hold the rows that are under attack: what an attack reads of them, their state, their counts."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.core.contracts.rule import AttackBatch
from bench.engine.query_log import QueryLog
from bench.engine.tensor_tree import count_rows, join_rows, take_rows


class ActiveBatch(NamedTuple):
    """Rows under attack: the item of each row, what the rule may read, its state."""

    item: Tensor
    """Index of the example, index of the eps, number of the restart, (rows, 3)."""
    known: AttackBatch
    state: Any
    first: Tensor
    """Steps made before the first success, (rows,), int64; -1 if there was none."""
    nonfinite: Tensor
    """Gradients so far with an entry that was not finite, (rows,)."""
    keys: Tensor
    """What keys the random transformations of the rows, (rows,); (rows, 0) if there are none."""
    log: QueryLog


class ActiveRows:
    """The rows under attack, in tensors that are made anew by every change."""

    def __init__(self) -> None:
        self.batch: Any = None
        """The rows, an `ActiveBatch`; None if there are none."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return count_rows(self.batch)

    def add(self, fresh: ActiveBatch | None) -> None:
        """Add rows behind the others.

        Args:
            fresh: The rows; None for none.
        """
        self.batch = join_rows(self.batch, fresh)

    def replace(self, batch: ActiveBatch) -> None:
        """Replace all rows by what they are after a step.

        Args:
            batch: As many rows.
        """
        self.batch = batch

    def take(self, at: Tensor) -> ActiveBatch:
        """Copy rows.

        Args:
            at: Indices of the rows, (n,), int64, on the CPU.

        Returns:
            The rows.
        """
        taken: ActiveBatch = take_rows(self.batch, at.to(self.batch.item.device))
        return taken

    def remove(self, at: Tensor) -> None:
        """Remove rows; the others may change their places.

        Args:
            at: Indices of the rows, (n,), int64, on the CPU.
        """
        if len(at) == len(self):
            self.batch = None
            return
        left = torch.ones(len(self), dtype=torch.bool)
        left[at] = False
        self.batch = self.take(left.nonzero()[:, 0])

    def leave(self) -> ActiveBatch:
        """Remove all rows.

        Returns:
            The rows.
        """
        batch: ActiveBatch = self.batch
        self.batch = None
        return batch
