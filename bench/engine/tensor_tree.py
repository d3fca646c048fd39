"""Operations on a batch: a NamedTuple of tensors and of such NamedTuples, whose first axis is the
row. No operation looks at what the rows mean."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch", bound=tuple[Any, ...])


def fields(batch: tuple[Any, ...]) -> list[Tensor]:
    """The tensors of a batch, in order, those of nested tuples among them."""
    return [
        tensor
        for field in batch
        for tensor in ([field] if isinstance(field, Tensor) else fields(field))
    ]


def size(batch: tuple[Any, ...] | None) -> int:
    """Rows of a batch; 0 if there is none."""
    return 0 if batch is None else len(fields(batch)[0])


def mapped(function: Callable[..., Tensor], first: Batch, *others: Batch) -> Batch:
    """`function` of the tensors in each place of the batches, in a batch of their kind."""
    return type(first)(
        *(
            function(*each) if isinstance(each[0], Tensor) else mapped(function, *each)
            for each in zip(first, *others, strict=True)
        )
    )


def take(batch: Batch, chosen: Tensor | slice) -> Batch:
    """The chosen rows, by a mask, indices or a slice."""
    return mapped(lambda field: field[chosen], batch)


def cut(batch: Batch, at: int) -> tuple[Batch, Batch | None]:
    """The first `at` rows, and the rest if there is any."""
    rest = take(batch, slice(at, None)) if size(batch) > at else None
    return take(batch, slice(0, at)), rest


def join(batch: Batch | None, fresh: Batch | None) -> Batch | None:
    """Both, one after the other; either may be missing."""
    if batch is None or fresh is None:
        return fresh if batch is None else batch
    return mapped(lambda *pair: torch.cat(pair), batch, fresh)
