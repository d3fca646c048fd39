"""The adversarial images that a run kept, read file by file as they are looked at.

Each cell keeps its first few (`parts.first_few`); of all cells together they are more than a report
should hold at once.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

HELD = 2
"""Files in memory: a cross-check goes to and fro between ours and the reference's."""


class LazyImages(Mapping[str, Tensor]):
    """Key -> images (k, c, h, w): a cell's identity, or the data's fingerprint."""

    def __init__(self, paths: list[Path], read: Callable[[Path], dict[str, Tensor]]) -> None:
        """Every file is read once, so that damage is told at once; `read` gives what a file
        holds, and raises where it is damaged."""
        self._read = read
        self._paths = {key: path for path in paths for key in read(path)}
        self._held: dict[Path, dict[str, Tensor]] = {}

    def __getitem__(self, key: str) -> Tensor:
        path = self._paths[key]
        if path not in self._held:
            for stale in list(self._held)[: len(self._held) - HELD + 1]:
                del self._held[stale]
            self._held[path] = self._read(path)
        return self._held[path][key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)
