"""Every adversarial image of a run, kept where that is asked for, up to a quota.

Beside each file of records lies one with its images: a safetensors file of a cell's identity ->
(n, c, h, w), float32, the images of the examples that the file of records holds, in their order. It
is written before the records are, so that records whose images are wanted have them.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from bench.core import files, sizes
from bench.storage import records

SUFFIX = records.ADVERSARIAL


class AdversarialWriter:
    """Writes the images of one run into its folder, until `quota` bytes are used up."""

    def __init__(self, folder: Path, quota: int) -> None:
        self.folder, self.quota = folder, quota
        there = (folder / "records").glob(f"*{SUFFIX}")
        self.used = sum(path.stat().st_size for path in there) if quota else 0
        self.left_out = 0
        """Images that there was no more room for."""

    def keep(
        self, stem: str, pieces: Sequence[records.Piece], images: Mapping[str, Tensor]
    ) -> None:
        """Keep the images of one file of records, all or, where they do not fit, none.

        Raises: SuiteError if they cannot be written.
        """
        size = sum(each.numel() * each.element_size() for each in images.values())
        if not images or self.used + size > self.quota:
            self.left_out += sum(len(each) for each in images.values())
            return
        content = save({cell: each.detach().cpu().contiguous() for cell, each in images.items()})
        name = f"{records.name_of(stem, pieces)}-{files.short_hash(content)}{SUFFIX}"
        files.write_atomic(self.folder / "records" / name, content)
        self.used += len(content)

    def told(self) -> str:
        """What a user must know of a quota that is used up."""
        return (
            f"--keep-adversarial: {self.left_out} adversarial images had no room in "
            f"{sizes.format_size(self.quota)}; to have them, run into another folder with more"
        )


def read(folder: Path, cell: str) -> Iterator[tuple[range, Tensor]]:
    """The images of a cell (column `cell` of table.csv) that were kept, shard by shard: the ids of
    the examples, and their images, (n, c, h, w).

    Raises: RecordError naming a file that is damaged.
    """
    for path in sorted((folder / "records").glob("*.parquet")):
        held = [piece for piece in records.pieces_of(path) if piece.cell == cell]
        beside = sorted(path.parent.glob(f"{files.strip_hash(path)}-*{SUFFIX}")) if held else []
        for kept in beside[:1]:
            yield range(held[0].first, held[0].last), records.tensors_of(kept)[cell]
