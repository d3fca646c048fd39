"""A run divided among several that know nothing of each other: `--shard I/N`.

Share I of N does every N-th part of the run, a part being one shard of examples of one task. Tasks
are staggered, so that every share meets all of them, the long ones and the short ones, however few
shards of examples there are. Each share has a folder of its own, and `bench.execution.merge` joins
them.
"""

import re
from pathlib import Path
from typing import NamedTuple

from bench.core.errors import SuiteError

_FOLDER = re.compile(r"shard-(\d+)-of-(\d+)")


class Shard(NamedTuple):
    """The I-th of N, counted from 1."""

    number: int
    of: int

    def holds(self, task: int, shard: int) -> bool:
        """Whether this share does the shard of the task, both counted from 0."""
        return (task + shard) % self.of == self.number - 1

    def folder(self, out: Path) -> Path:
        """Where this share of the run in `out` goes."""
        return out if self == WHOLE else out / f"shard-{self.number}-of-{self.of}"


WHOLE = Shard(1, 1)


def parse(text: str) -> Shard:
    """The share written as "I/N".

    >>> parse("2/5")
    Share(number=2, of=5)

    Raises: SuiteError unless 1 <= I <= N.
    """
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    share = Shard(int(found[1]), int(found[2])) if found else Shard(0, 0)
    if not 1 <= share.number <= share.of:
        raise SuiteError(
            f"--shard '{text}': expected I/N with I from 1 to N, such as 1/4, 2/4, 3/4 and 4/4 for "
            "four runs that together do everything"
        )
    return share


def folders(out: Path) -> list[Path]:
    """The folders of the shares in a run's folder, in the order of their numbers."""
    named = [
        (found, path) for path in out.glob("shard-*") if (found := _FOLDER.fullmatch(path.name))
    ]
    numbered = sorted((int(found[2]), int(found[1]), path) for found, path in named)
    return [path for _, _, path in numbered if (path / "provenance.json").is_file()]
