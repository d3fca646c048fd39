"""Adversarial images of a run's first examples, for example grids and cross-checks.

A run keeps the first few images of each cell beside the records, in safetensors files: identity of
a cell, or fingerprint of the data for the clean images -> (k, c, h, w). The images of all cells
together exceed what a report should hold in memory, so they are read file by file on access.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from bench.core import files
from bench.storage.reader import DamagedError, read_verified_bytes

IMAGES_SUFFIX = ".images"
ADVERSARIAL_SUFFIX = ".adversarial"
"""Suffix of the files with every adversarial image (`bench.storage.adversarial_images`)."""
CLEAN = "clean"
"""Name, before the hash, of the file with the clean images."""
FILES_IN_MEMORY = 2
"""A cross-check alternates between the file of our attack and that of the reference."""


class LazyImages(Mapping[str, Tensor]):
    """Images by key, (k, c, h, w) each, read on access; see the module for the keys."""

    def __init__(self, paths: list[Path]) -> None:
        """Read every file once, so that damage is found here and not on access.

        Args:
            paths: Files that `write_images` wrote.

        Raises:
            RecordError: A file is damaged.
        """
        self._paths = {key: path for path in paths for key in read_tensors(path)}
        self._loaded: dict[Path, dict[str, Tensor]] = {}

    def __getitem__(self, key: str) -> Tensor:
        path = self._paths[key]
        if path not in self._loaded:
            for oldest in list(self._loaded)[: len(self._loaded) - FILES_IN_MEMORY + 1]:
                del self._loaded[oldest]
            self._loaded[path] = read_tensors(path)
        return self._loaded[path][key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def read_images(folder: Path) -> LazyImages:
    """Open the images of a run's folder.

    Args:
        folder: Folder of the run.

    Returns:
        Identity of a cell -> its first adversarial images, and fingerprint of the data -> the
        clean ones, (k, c, h, w) each.

    Raises:
        RecordError: A file is damaged.
    """
    return LazyImages(sorted((folder / "records").glob(f"*{IMAGES_SUFFIX}")))


def write_images(folder: Path, name: str, images: Mapping[str, Tensor]) -> None:
    """Write one file of images.

    Args:
        folder: Folder of the run.
        name: Name of the file before its hash.
        images: Identity of a cell or fingerprint of the data -> images (k, c, h, w).

    Raises:
        SuiteError: The disk is full or the folder cannot be written.
    """
    content = save({key: each.detach().cpu().contiguous() for key, each in images.items()})
    path = folder / "records" / f"{name}-{files.short_hash(content)}{IMAGES_SUFFIX}"
    files.write_atomic(path, content)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read one file of images.

    Args:
        path: A file with IMAGES_SUFFIX or ADVERSARIAL_SUFFIX.

    Returns:
        Key -> images (k, c, h, w).

    Raises:
        RecordError: The file is damaged.
    """
    try:
        tensors: dict[str, Tensor] = load(read_verified_bytes(path))
    except SafetensorError as error:
        raise DamagedError(path, error) from error
    for key, images in tensors.items():
        if images.ndim != 4 or not images.is_floating_point():
            raise DamagedError(path, f"no images: {key[:40]!r} is {tuple(images.shape)}")
    return tensors
