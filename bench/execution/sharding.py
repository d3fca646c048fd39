"""Division of a run among processes that do not communicate: `--shard I/N`.

Shard I of N runs every N-th work unit, a unit being one chunk of examples of one task. Tasks are
staggered, so that every shard receives units of all tasks, long and short ones, even if there are
few chunks. Each shard has its own folder; `bench.execution.merge` joins them.
"""

import re
from pathlib import Path
from typing import NamedTuple

from bench.core.errors import SuiteError

_FOLDER = re.compile(r"shard-(\d+)-of-(\d+)")


class Shard(NamedTuple):
    """Shard `number` of `of`, counted from 1."""

    number: int
    of: int

    def contains(self, task: int, chunk: int) -> bool:
        """Return whether a unit belongs to this shard.

        Args:
            task: Number of the task, from 0.
            chunk: Number of the chunk of examples, from 0.

        Returns:
            True for exactly one of the `of` shards.
        """
        return (task + chunk) % self.of == self.number - 1

    def folder(self, out: Path) -> Path:
        """Return the folder of this shard.

        Args:
            out: Folder of the whole run.

        Returns:
            `out` itself for the shard 1/1, else a folder inside it.
        """
        return out if self == WHOLE else out / f"shard-{self.number}-of-{self.of}"


WHOLE = Shard(1, 1)


def parse_shard(text: str) -> Shard:
    """Parse a shard written as "I/N".

    >>> parse_shard("2/5")
    Shard(number=2, of=5)

    Args:
        text: As given to `--shard`.

    Returns:
        The shard.

    Raises:
        SuiteError: The text is not I/N with 1 <= I <= N.
    """
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    shard = Shard(int(match[1]), int(match[2])) if match else Shard(0, 0)
    if not 1 <= shard.number <= shard.of:
        raise SuiteError(
            f"--shard '{text}': expected I/N with I from 1 to N, such as 1/4, 2/4, 3/4 and 4/4 for "
            "four runs that together do everything"
        )
    return shard


def list_shard_folders(out: Path) -> list[Path]:
    """List the folders of shards in the folder of a run.

    Args:
        out: Folder of the whole run.

    Returns:
        Folders that contain a run, by their number.
    """
    named = [
        (match, path) for path in out.glob("shard-*") if (match := _FOLDER.fullmatch(path.name))
    ]
    numbered = sorted((int(match[2]), int(match[1]), path) for match, path in named)
    return [path for _, _, path in numbered if (path / "provenance.json").is_file()]
