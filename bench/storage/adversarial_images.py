"""Every adversarial image of a run, kept on request (--keep-adversarial), up to a quota.

Beside a file of records lies a safetensors file: identity of a cell -> images (n, c, h, w) of the
examples in the file of records, in their order. It is written before the records, so that
records never lack the images that were asked for.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import ByteSize
from safetensors.torch import save
from torch import Tensor

from bench.core import files
from bench.storage import records
from bench.storage.images import ADVERSARIAL_SUFFIX, read_tensors
from bench.storage.reader import read_file_pieces
from bench.storage.schema import Piece


class AdversarialWriter:
    """Write the adversarial images of one run until a quota is used up.

    Attributes:
        used: Bytes that the images in the folder take.
        left_out: Images that were not written for lack of room.
    """

    def __init__(self, folder: Path, quota: int) -> None:
        """Count the images that an earlier session of the run has written.

        Args:
            folder: Folder of the run.
            quota: Bytes; 0 keeps no images.
        """
        self.folder, self.quota = folder, quota
        existing = (folder / "records").glob(f"*{ADVERSARIAL_SUFFIX}")
        self.used = sum(path.stat().st_size for path in existing) if quota else 0
        self.left_out = 0

    def write_images(
        self, stem: str, pieces: Sequence[Piece], images: Mapping[str, Tensor]
    ) -> None:
        """Write the images of one file of records: all of them, or none if they do not fit.

        Args:
            stem: Beginning of the name, as of the file of records.
            pieces: Those of the file of records.
            images: Identity of a cell -> images (n, c, h, w).

        Raises:
            SuiteError: The disk is full or the folder cannot be written.
        """
        size = sum(each.numel() * each.element_size() for each in images.values())
        if not images or self.used + size > self.quota:
            self.left_out += sum(len(each) for each in images.values())
            return
        content = save({cell: each.detach().cpu().contiguous() for cell, each in images.items()})
        name = f"{records.file_stem(stem, pieces)}-{files.short_hash(content)}{ADVERSARIAL_SUFFIX}"
        files.write_atomic(self.folder / "records" / name, content)
        self.used += len(content)

    def describe_left_out(self) -> str:
        """Say how many images were left out.

        Returns:
            A sentence for the user.
        """
        return (
            f"--keep-adversarial: {self.left_out} adversarial images had no room in "
            f"{ByteSize(self.quota).human_readable()}; to have them, run into another folder with "
            "more"
        )


def read_adversarial_images(folder: Path, cell: str) -> Iterator[tuple[range, Tensor]]:
    """Read the adversarial images of a cell, file by file.

    Args:
        folder: Folder of the run.
        cell: Identity of the cell (column `cell` of table.csv).

    Yields:
        Indices of the examples, and their images (n, c, h, w), float32.

    Raises:
        RecordError: A file is damaged.
    """
    for path in sorted((folder / "records").glob("*.parquet")):
        pieces = [piece for piece in read_file_pieces(path) if piece.cell == cell]
        images = sorted(path.parent.glob(f"{files.strip_hash(path)}-*{ADVERSARIAL_SUFFIX}"))
        if pieces and images:
            yield range(pieces[0].first, pieces[0].last), read_tensors(images[0])[cell]
