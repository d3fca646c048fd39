"""Operations on a batch: a NamedTuple of tensors and of such NamedTuples, whose first axis is the
row. No operation looks at what the rows mean."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch", bound=tuple[Any, ...])


def list_tensors(batch: tuple[Any, ...]) -> list[Tensor]:
    """The tensors of a batch, in order, those of nested tuples among them."""
    return [
        tensor
        for field in batch
        for tensor in ([field] if isinstance(field, Tensor) else list_tensors(field))
    ]


def count_rows(batch: tuple[Any, ...] | None) -> int:
    """Rows of a batch; 0 if there is none."""
    return 0 if batch is None else len(list_tensors(batch)[0])


def map_tensors(function: Callable[..., Tensor], first: Batch, *others: Batch) -> Batch:
    """`function` of the tensors in each place of the batches, in a batch of their kind."""
    return type(first)(
        *(
            function(*each) if isinstance(each[0], Tensor) else map_tensors(function, *each)
            for each in zip(first, *others, strict=True)
        )
    )


def take_rows(batch: Batch, chosen: Tensor | slice) -> Batch:
    """The chosen rows, by a mask, indices or a slice."""
    return map_tensors(lambda field: field[chosen], batch)


def split_rows(batch: Batch, at: int) -> tuple[Batch, Batch | None]:
    """The first `at` rows, and the rest if there is any."""
    rest = take_rows(batch, slice(at, None)) if count_rows(batch) > at else None
    return take_rows(batch, slice(0, at)), rest


def join_rows(batch: Batch | None, fresh: Batch | None) -> Batch | None:
    """Both, one after the other; either may be missing."""
    if batch is None or fresh is None:
        return fresh if batch is None else batch
    return map_tensors(lambda *pair: torch.cat(pair), batch, fresh)
