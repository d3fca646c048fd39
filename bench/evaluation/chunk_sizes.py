"""Choose how many examples a chunk holds: what a work unit attacks at once and records together.

Between two chunks a GPU waits for the host, so that there chunks are larger where memory allows. A
run's folder keeps the size that it was created with (`bench.execution.chunk_choice`). Outcomes do
not depend on it: where they depend on the batch, chunks have the standard size everywhere.
"""

import math
from collections.abc import Mapping

import torch

from bench.core.contracts.types import Shape
from bench.engine.device import is_gpu, read_memory
from bench.suite.identity import ModelFacts
from bench.suite.plan import AttackTask

CHUNK_EXAMPLES = 1000
CHUNK_BYTES = 64 * 2**20
"""A chunk of the standard size holds at most so many examples, and so many bytes of images."""
LARGEST_CHUNK = 10_000
"""Most examples of any chunk."""
UNIT_BYTES = 512 * 2**20
"""Bytes of adversarial images and records that one work unit may return, so that memory does not
grow with the number of eps of a suite."""
RECORD_BYTES = 1024
"""Bytes of one example's record at one eps while a frame is built, with a margin."""
MEMORY_DIVISOR = 32
"""The adversarial images of a chunk may take 1 / MEMORY_DIVISOR of a GPU's free memory: while they
are verified there are some six times as many bytes, besides the passes of the model."""


def standard_size(shape: Shape) -> int:
    """Return the examples of a chunk by the size of an image alone.

    Args:
        shape: Shape (c, h, w) of an image.

    Returns:
        The size that all folders had before it was chosen, and that a CPU still has.
    """
    return max(8, min(CHUNK_EXAMPLES, CHUNK_BYTES // _image_bytes(shape)))


def choose_size(device: torch.device, shape: Shape, radii: int) -> int:
    """Choose the examples of a chunk for a device.

    Args:
        device: Where the attacks run.
        shape: Shape (c, h, w) of an image.
        radii: Most eps that one attack runs at.

    Returns:
        The standard size on a CPU; on a GPU a multiple of it, of at most LARGEST_CHUNK examples, as
        far as the images of all eps fit into UNIT_BYTES and the GPU's free memory.
    """
    size = standard_size(shape)
    if not is_gpu(device):
        return size
    free, _ = read_memory(device)
    images = free // MEMORY_DIVISOR // (radii * _image_bytes(shape))
    returned = UNIT_BYTES // (radii * (_image_bytes(shape) + RECORD_BYTES))
    # Chunks of both sizes nest, so that folders of both can be joined.
    return size * max(1, min(images, returned, LARGEST_CHUNK) // size)


def is_plausible(size: object, shape: Shape) -> bool:
    """Check whether a chunk of a size that a folder states fits into memory.

    Args:
        size: What the folder states.
        shape: Shape (c, h, w) of an image.

    Returns:
        Whether it is a number of examples that `choose_size` may have returned for some device.
    """
    largest = max(standard_size(shape), UNIT_BYTES // _image_bytes(shape))
    return type(size) is int and 0 < size <= min(LARGEST_CHUNK, largest)


def chunk_bounds(n: int, size: int) -> list[tuple[int, int]]:
    """Divide a data set into chunks.

    >>> chunk_bounds(10, 4)
    [(0, 4), (4, 8), (8, 10)]

    Args:
        n: Number of examples.
        size: Examples of a chunk.

    Returns:
        (first, last) of each chunk, `last` excluded.
    """
    return [(first, min(first + size, n)) for first in range(0, n, size)]


def depends_on_batch(task: AttackTask, facts: Mapping[str, ModelFacts]) -> bool:
    """Return whether outcomes of a task depend on which examples are attacked together.

    Args:
        task: The planned task.
        facts: Facts of the loaded models, by label.

    Returns:
        True for an attack that draws or steps batch by batch, and for a model that answers at
        random or by the other images of a batch.
    """
    spec, models = task.spec, (facts[label] for label in task.models if label in facts)
    return spec.random or spec.attack.batch_dependent or any(m.batch_dependent for m in models)


def _image_bytes(shape: Shape) -> int:
    return 4 * math.prod(shape)
