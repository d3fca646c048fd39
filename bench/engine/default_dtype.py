"""The type of the tensors that a computation makes without naming one."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def default_to_float32() -> Iterator[None]:
    """Make float32 torch's default type; restore the former one afterwards.

    bench computes in the type of the images, float32, and a program that calls it may have set
    another default. A model's own parameters and buffers keep their types.

    Yields:
        With the default in place. It is that of the process, as torch has no other.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
