"""Operate on batches: NamedTuples of tensors and of such NamedTuples, whose first axis is the row.

No operation depends on the meaning of the rows.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch", bound=tuple[Any, ...])


def list_tensors(batch: tuple[Any, ...]) -> list[Tensor]:
    """List the tensors of a batch in order, including those of nested tuples.

    Args:
        batch: NamedTuple of tensors and of such NamedTuples, whose first axis is the row.

    Returns:
        The tensors.
    """
    return [
        tensor
        for field in batch
        for tensor in ([field] if isinstance(field, Tensor) else list_tensors(field))
    ]


def count_rows(batch: tuple[Any, ...] | None) -> int:
    """Count the rows of a batch.

    Args:
        batch: A batch, or None.

    Returns:
        The number of rows; 0 for None.
    """
    return 0 if batch is None else len(list_tensors(batch)[0])


def map_tensors(function: Callable[..., Tensor], first: Batch, *others: Batch) -> Batch:
    """Apply a function to the tensors in each place of one or several batches.

    Args:
        function: Function of one tensor of each batch.
        first: A batch.
        *others: Batches of the same structure.

    Returns:
        A batch of the same type.
    """
    return type(first)(
        *(
            function(*each) if isinstance(each[0], Tensor) else map_tensors(function, *each)
            for each in zip(first, *others, strict=True)
        )
    )


def take_rows(batch: Batch, chosen: Tensor | slice) -> Batch:
    """Select rows.

    Args:
        batch: NamedTuple of tensors and of such NamedTuples, whose first axis is the row.
        chosen: Mask, (rows,), bool; indices, (n,), int64; or a slice.

    Returns:
        The rows in a batch of the same type; views for a slice.
    """
    if isinstance(chosen, slice):
        return map_tensors(lambda field: field[chosen], batch)
    # A mask would be searched once for every tensor; a GPU's host would wait each time.
    at = chosen.nonzero()[:, 0] if chosen.dtype == torch.bool else chosen
    return map_tensors(lambda field: field.index_select(0, at), batch)


def split_rows(batch: Batch, at: int) -> tuple[Batch, Batch | None]:
    """Split a batch after `at` rows.

    Args:
        batch: NamedTuple of tensors and of such NamedTuples, whose first axis is the row.
        at: Number of rows of the first part.

    Returns:
        The first part, and the rest or None if it is empty.
    """
    rest = take_rows(batch, slice(at, None)) if count_rows(batch) > at else None
    return take_rows(batch, slice(0, at)), rest


def join_rows(batch: Batch | None, fresh: Batch | None) -> Batch | None:
    """Concatenate two batches, either of which may be None.

    Args:
        batch: First batch.
        fresh: Second batch.

    Returns:
        The batch; None if both are.
    """
    if batch is None or fresh is None:
        return fresh if batch is None else batch
    return map_tensors(lambda *pair: torch.cat(pair), batch, fresh)
