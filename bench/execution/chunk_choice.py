"""Choose the examples of a chunk for a run's folder, or read what was chosen for it before.

The size is chosen once, by the session that creates a folder, and written into its manifest. Every
later session, shard and worker reads it there, whatever device it has, so that what is missing is
divided as what is there. A folder of an earlier version states no size: its chunks are of the
standard one.
"""

from collections.abc import Iterator
from pathlib import Path

from bench.core.contracts.types import Shape
from bench.evaluation import chunk_sizes
from bench.evaluation.evaluator import Evaluator
from bench.execution import sharding
from bench.execution.options import RunOptions
from bench.storage import manifest
from bench.suite.schema import Suite

KEY = "chunk_examples"
"""Of `data` in the manifest."""


def choose_chunk_size(
    evaluator: Evaluator, suite: Suite, out: Path | None, options: RunOptions
) -> int:
    """Choose the examples of a chunk.

    Shards are not told each other's device and `--deterministic` promises the same batches in
    every folder, so that both have the standard size unless their folders state another one.

    Args:
        evaluator: Loaded data, on its device.
        suite: Checked suite, for the number of its eps.
        out: Folder of the run or of its shard; None on another machine.
        options: Options of the session.

    Returns:
        The size that the folder, a sibling of a shard or the options state; otherwise by the
        device.
    """
    shape = evaluator.data.shape
    for folder in _related_folders(out, options):
        stated = _read_size(folder, shape)
        if stated is not None:
            return stated
    if options.chunk_examples is not None and chunk_sizes.is_plausible(
        options.chunk_examples, shape
    ):
        return options.chunk_examples
    whole = options.shard == sharding.WHOLE
    if not (whole and options.larger_chunks) or options.deterministic:
        return chunk_sizes.standard_size(shape)
    radii = max((len(attack.eps) for attack in suite.attacks), default=1)
    return chunk_sizes.choose_size(evaluator.device, shape, radii)


def _related_folders(out: Path | None, options: RunOptions) -> Iterator[Path]:
    """The folders of one run, the session's own first; one that is to be emptied states nothing."""
    if out is None:
        return
    if not options.fresh:
        yield out
    if options.shard != sharding.WHOLE:
        yield from (each for each in sharding.list_shard_folders(out.parent) if each != out)
        yield out.parent


def _read_size(folder: Path, shape: Shape) -> int | None:
    """Return what a folder states for images of this shape; None if it holds no such run."""
    data = manifest.read_raw(folder).get("data")
    if not isinstance(data, dict) or data.get("shape") != list(shape):
        return None
    size = data.get(KEY)
    return size if chunk_sizes.is_plausible(size, shape) else chunk_sizes.standard_size(shape)
