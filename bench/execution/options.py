"""Options of one run: what the command line states and the suite does not."""

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Any

from bench.execution.sharding import WHOLE, Shard


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of one run of a suite."""

    device: str = "auto"
    """"auto", "cpu", "cuda[:N]" or "xpu[:N]"."""
    limit: int | None = None
    """Number of examples; the suite's own limit applies as well."""
    batch_size: int | None = None
    """Rows per model pass; None: by rule, from the memory that one row takes."""
    data_dir: Path = Path()
    fresh: bool = False
    """Whether the records in the folder are deleted first."""
    copied: bool = True
    """Whether attacks run on an accelerated model where one agrees with the model."""
    deterministic: bool = False
    """Whether another run on this device must return the same bits."""
    image_quota: int = 0
    """Bytes that the stored adversarial images may take in total; 0: none are stored."""
    shard: Shard = WHOLE
    """The part of the run that `--shard I/N` selects."""
    chunk_examples: int | None = None
    """Examples of a chunk in a folder that states none; None: by the device."""
    larger_chunks: bool = True
    """Whether a GPU may have larger chunks than a CPU, where nothing states their size."""
    command: str = dataclasses.field(default_factory=lambda: shlex.join(["bench", *sys.argv[1:]]))

    def to_manifest(self) -> dict[str, Any]:
        """Return the options that change outcomes, as provenance.json stores them.

        Returns:
            Option -> value, the shard as "I/N" under "share".
        """
        names = ("device", "limit", "batch_size", "copied", "deterministic")
        shard = f"{self.shard.number}/{self.shard.of}"
        return {**{name: getattr(self, name) for name in names}, "share": shard}


def default_run_folder(suite: str) -> Path:
    """Return the folder of a suite's run where none is given.

    Args:
        suite: Name of the suite.

    Returns:
        results/runs/NAME, relative to the working directory.
    """
    return Path("results") / "runs" / suite
