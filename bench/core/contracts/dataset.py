"""What a file of a data set defines: one DATASET record that loads `Data`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from bench.core.contracts.types import Shape


class _CloningReader(NamedTuple):
    """Reader of images that returns a new tensor to each caller."""

    read: Callable[[int, int], Tensor]

    def __call__(self, first: int, last: int) -> Tensor:
        images = self.read(first, last)
        return images.clone() if isinstance(images, Tensor) else images


@dataclass(frozen=True, kw_only=True)
class Data:
    """Images and labels, read in slices so that a data set may be larger than memory."""

    name: str
    """Name in tables; it says so if the labels are the model's predictions."""
    read: Callable[[int, int], Tensor]
    """(first, last) -> images of that slice, float32 in [0, 1], (last - first, c, h, w)."""
    labels: Tensor | None
    """(n,), int64; None if the model's clean predictions are the labels."""
    n: int
    shape: Shape
    classes: tuple[str, ...]
    """Names of the classes in index order; empty if unknown."""
    fingerprint: str
    """Hash of images and labels: records of other data are never resumed or compared."""
    mapping: Mapping[str, str] = field(default_factory=dict)
    """How files and numbers were read as images and labels, one short text each."""

    def __post_init__(self) -> None:
        """Copy what is handed out, so that no two callers share storage.

        A model or an attack that writes into an image changes neither the user's tensors nor what
        is read next.
        """
        if not isinstance(self.read, _CloningReader):
            object.__setattr__(self, "read", _CloningReader(self.read))
        if isinstance(self.labels, Tensor):  # other types are refused when the data are checked
            object.__setattr__(self, "labels", self.labels.clone())


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One data set: where it comes from and how to load it."""

    summary: str
    source: str
    load: Callable[..., Data]
    """(split, limit, data_dir, **params) -> Data."""
    reads: Callable[[str, Path], Sequence[Path]] | None = None
    """(split, data_dir) -> every file outside the package that `load` reads. While none has
    changed, a plan need not load the data; None if the files are unknown before loading."""
