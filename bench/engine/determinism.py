"""The same bits again: what must hold while a run is to be repeated bit by bit on one device.

torch is told to use no operation whose outcome varies and raises where one has no other form;
cuDNN chooses its kernels by rule, cuBLAS works in a memory of fixed size, sums are made in one
order, that of one thread. Whoever would let a stopwatch decide (`copies`, `meter`) asks torch
whether it must be deterministic, and takes a rule. What this cannot fix: another device, another
version of torch or of a library below it, memory that runs out at another moment, and a model or
attack that draws from what is no generator of torch's.
"""

import contextlib
import os
from collections.abc import Iterator

import torch

from bench.core.errors import first_line

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
SIZE = ":4096:8"
"""Eight buffers of 4 MiB, one of the two settings that cuBLAS is deterministic with."""


@contextlib.contextmanager
def enforce_determinism(wanted: bool) -> Iterator[None]:
    """Everything as above inside, and as it was afterwards; nothing at all unless `wanted`."""
    if not wanted:
        yield
        return
    convolutions = torch.backends.cudnn
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        convolutions.deterministic,
        convolutions.benchmark,
        torch.get_num_threads(),
        os.environ.get(WORKSPACE),
    )
    os.environ.setdefault(WORKSPACE, SIZE)  # before the first product on a GPU
    torch.use_deterministic_algorithms(True)
    convolutions.deterministic, convolutions.benchmark = True, False
    torch.set_num_threads(1)
    try:
        yield
    finally:
        strict, warns, convolutions.deterministic, convolutions.benchmark, threads, size = before
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        torch.set_num_threads(threads)
        if size is None:
            os.environ.pop(WORKSPACE, None)


def explain_nondeterminism(error: BaseException) -> str:
    """In one sentence that torch has no deterministic form of an operation; "" for other errors."""
    first = first_line(error)
    name, found, _ = first.partition(" does not have a deterministic implementation")
    remedy = "run without --deterministic, or let it do without"
    return f"torch has no deterministic form of {name}; {remedy}" if found else ""
