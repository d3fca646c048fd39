"""Repeat a run bit by bit on one device.

torch uses deterministic operations alone and raises where there is none; cuDNN chooses its kernels
by rule, cuBLAS works in a buffer of fixed size, and sums run in one thread and so in one order.
`acceleration.calibration` and `timing`, which would measure otherwise, follow a rule while torch
must be deterministic. What remains: another device, another version of torch or of a library below
it, memory that runs out at another moment, and a model or attack that draws from a generator that
is not torch's.
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
    """Make torch deterministic; restore the settings afterwards.

    Args:
        wanted: Whether to change anything.

    Yields:
        With deterministic settings if `wanted`.
    """
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
    """Explain an error that torch raises for a nondeterministic operation.

    Args:
        error: The exception.

    Returns:
        One sentence with the remedy; empty for other errors.
    """
    first = first_line(error)
    name, found, _ = first.partition(" does not have a deterministic implementation")
    remedy = "run without --deterministic, or let it do without"
    return f"torch has no deterministic form of {name}; {remedy}" if found else ""
