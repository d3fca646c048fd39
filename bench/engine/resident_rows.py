"""Hold the rows under attack in buffers that stay where they are, as a recorded graph needs them.

Rows are written when they enter and read when they leave. Tensors of one dtype and one shape of row
lie in one block, so that an operation on rows takes one kernel for each block, not for each tensor.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.engine.active_rows import ActiveBatch
from bench.engine.tensor_tree import Batch, count_rows, list_tensors, map_tensors, take_rows


def replace_tensors(batch: Batch, tensors: list[Tensor]) -> Batch:
    """Build a batch like another one.

    Args:
        batch: NamedTuple of tensors and of such NamedTuples, whose first axis is the row.
        tensors: A tensor for each of its tensors, in order.

    Returns:
        A batch of the same type.
    """
    left = iter(tensors)
    return map_tensors(lambda _: next(left), batch)


class RowBuffers:
    """Buffers for rows like those of a batch."""

    def __init__(self, example: ActiveBatch, most: int) -> None:
        """Allocate the buffers, filled with the rows of the example again and again.

        Rows that are not in use are computed with the others, so that they must be valid.

        Args:
            example: Rows; their number does not matter.
            most: Number of rows that the buffers hold.
        """
        self.most = most
        self.layout = _describe(example)
        filled = take_rows(
            example, torch.arange(most, device=example.item.device) % count_rows(example)
        )
        groups = defaultdict(list)
        for number, tensor in enumerate(list_tensors(filled)):
            groups[tensor.dtype, tensor.shape[1:]].append((number, tensor))
        self._blocks = [torch.stack([each for _, each in group]) for group in groups.values()]
        self._places: dict[int, tuple[int, int]] = {
            number: (block, at)
            for block, group in enumerate(groups.values())
            for at, (number, _) in enumerate(group)
        }
        self._whole: ActiveBatch = self._arrange(filled, self._blocks)

    def fits(self, example: ActiveBatch, rows: int) -> bool:
        """Return whether these buffers hold so many rows like those of a batch.

        Args:
            example: Rows.
            rows: Number of rows.

        Returns:
            True if number, structure, dtypes, shapes and device agree.
        """
        return rows <= self.most and self.layout == _describe(example)

    def view(self, rows: int) -> ActiveBatch:
        """View the first rows.

        Args:
            rows: Number of rows.

        Returns:
            The rows.
        """
        return take_rows(self._whole, slice(0, rows))

    def write(self, batch: ActiveBatch, first: int) -> None:
        """Write rows.

        Args:
            batch: The rows.
            first: Index of the row that the first one is written to.
        """
        place = slice(first, first + count_rows(batch))
        copy_changed(batch, take_rows(self._whole, place))

    def take(self, at: Tensor) -> ActiveBatch:
        """Copy rows.

        Args:
            at: Indices of the rows, (n,), int64, on the buffers' device.

        Returns:
            The rows.
        """
        taken = [
            block.index_select(1, at) if block.numel() else block[:, : len(at)]
            for block in self._blocks
        ]
        return self._arrange(self._whole, taken)

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Copy rows to the places of others.

        Args:
            sources: Indices of the rows, (n,), int64, on the buffers' device.
            targets: Indices of the places, likewise; no source is among them.
        """
        for block in self._blocks:
            if block.numel():
                block.index_copy_(1, targets, block.index_select(1, sources))

    def _arrange(self, like: ActiveBatch, blocks: list[Tensor]) -> ActiveBatch:
        """View blocks as a batch."""
        places = [self._places[number] for number in range(len(self._places))]
        return replace_tensors(like, [blocks[block][at] for block, at in places])


def _describe(batch: tuple[Any, ...]) -> tuple[object, ...]:
    """Describe structure, dtypes, shapes of a row and device of a batch."""
    kinds = [type(batch), *(type(field) for field in batch)]
    state = type(batch.state) if isinstance(batch, ActiveBatch) else None
    tensors = [(each.dtype, each.shape[1:], each.device) for each in list_tensors(batch)]
    return (*kinds, state, *tensors)


def copy_changed(source: Batch, into: Batch) -> None:
    """Copy those tensors that are not the buffers themselves, one kernel for each dtype.

    Args:
        source: Batch to copy; what it shares with a buffer in another place is copied first.
        into: Buffers of the same structure and number of rows.
    """
    buffers = list_tensors(into)
    pairs = [
        (buffer, new)
        for buffer, new in zip(buffers, list_tensors(source), strict=True)
        if new is not buffer and buffer.numel()
    ]
    memory = {buffer.untyped_storage().data_ptr() for buffer in buffers}
    groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for buffer, new in pairs:
        shared = new.untyped_storage().data_ptr() in memory
        targets, sources = groups.setdefault(buffer.dtype, ([], []))
        targets.append(buffer)
        sources.append(new.clone() if shared else new)
    for targets, sources in groups.values():
        torch._foreach_copy_(targets, sources)


class ResidentRows:
    """The rows under attack in buffers; the interface of `ActiveRows`."""

    def __init__(self, reserve: Callable[[ActiveBatch], RowBuffers]) -> None:
        """Hold no rows yet.

        Args:
            reserve: Returns buffers for rows like those of a batch.
        """
        self._reserve = reserve
        self._rows = 0
        self.buffers: RowBuffers | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._rows

    @property
    def batch(self) -> Any:
        """The rows, an `ActiveBatch` of views; None if there are none."""
        return self._held().view(self._rows) if self._rows else None

    def add(self, fresh: ActiveBatch | None) -> None:
        """Write rows behind the others.

        Args:
            fresh: The rows; None for none.
        """
        if fresh is None:
            return
        if self.buffers is None:
            self.buffers = self._reserve(fresh)
        self.buffers.write(fresh, self._rows)
        self._rows += count_rows(fresh)

    def replace(self, batch: ActiveBatch) -> None:
        """Write all rows as they are after a step.

        Args:
            batch: As many rows.
        """
        self._held().write(batch, 0)

    def take(self, at: Tensor) -> ActiveBatch:
        """Copy rows.

        Args:
            at: Indices of the rows, (n,), int64, on the CPU.

        Returns:
            The rows.
        """
        held = self._held()
        return held.take(at.to(held.view(1).item.device, non_blocking=True))

    def remove(self, at: Tensor) -> None:
        """Remove rows: the last ones take the places of the removed ones.

        Args:
            at: Indices of the rows, (n,), int64, on the CPU.
        """
        left = torch.ones(self._rows, dtype=torch.bool)
        left[at] = False
        self._rows -= len(at)
        sources = left[self._rows :].nonzero()[:, 0] + self._rows
        if not len(sources):
            return
        held = self._held()
        targets = at[at < self._rows]
        moved = torch.stack([sources, targets]).to(held.view(1).item.device, non_blocking=True)
        held.move(*moved.unbind(0))

    def leave(self) -> ActiveBatch:
        """Remove all rows and leave the buffers.

        Returns:
            A copy of the rows.
        """
        batch: ActiveBatch = map_tensors(torch.clone, self.batch)
        self.buffers, self._rows = None, 0
        return batch

    def _held(self) -> RowBuffers:
        assert self.buffers is not None
        return self.buffers
