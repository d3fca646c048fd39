"""What a file of a data set promises: one DATASET record that loads `Data`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from bench.core.contracts.types import Shape


class _CloningReader(NamedTuple):
    """A reader of images whose callers each get a tensor of their own."""

    read: Callable[[int, int], Tensor]

    def __call__(self, first: int, last: int) -> Tensor:
        images = self.read(first, last)
        return images.clone() if isinstance(images, Tensor) else images


@dataclass(frozen=True, kw_only=True)
class Data:
    """Images and labels, read in slices so that a data set larger than memory can be used."""

    name: str
    """Name in tables; says so where the labels are not the data set's own."""
    read: Callable[[int, int], Tensor]
    """(first, last) -> images of that slice, float32 in [0, 1], (last - first, c, h, w)."""
    labels: Tensor | None
    """(n,), int64; None if the model's own clean prediction is to be the label."""
    n: int
    shape: Shape
    classes: tuple[str, ...]
    """Names of the classes in index order; may be empty if unknown."""
    fingerprint: str
    """Hash of images and labels: records of other data are never resumed or compared."""
    mapping: Mapping[str, str] = field(default_factory=dict)
    """How files and numbers were read as images and labels, a short text each, for people."""

    def __post_init__(self) -> None:
        """What is handed out shares no storage with what the user holds: a model or an attack that
        writes into it changes neither that nor what is read next."""
        if not isinstance(self.read, _CloningReader):
            object.__setattr__(self, "read", _CloningReader(self.read))
        if isinstance(self.labels, Tensor):  # what is none is refused where data are checked
            object.__setattr__(self, "labels", self.labels.clone())


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One data set: where it comes from and how to load it."""

    summary: str
    source: str
    load: Callable[..., Data]
    """(split, limit, data_dir, **params) -> Data."""
    reads: Callable[[str, Path], Sequence[Path]] | None = None
    """(split, data_dir) -> every file that `load` reads beside those of the package: without them
    or while none has changed a plan need not load it; None if only loading tells."""
