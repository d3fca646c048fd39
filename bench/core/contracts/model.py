"""What a file of a model defines: one MODEL record."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from bench.core.contracts.types import Shape


@dataclass(frozen=True, kw_only=True)
class Model:
    """One architecture: how to build it and where its published weights come from."""

    summary: str
    source: str
    build: Callable[..., nn.Module]
    """(**params) -> a module mapping images in [0, 1], (n, c, h, w), to logits (n, classes)."""
    version: int = 1
    """Part of the model's fingerprint. Raise it when outputs change by anything but parameters and
    buffers."""
    shape: Shape | None
    """Shape of an image; None, like `classes`, if it depends on the weights."""
    classes: int | None
    published: Callable[[str], Mapping[str, Tensor]] | None = None
    """(name) -> published weights that are not in models/weights."""
    published_names: tuple[str, ...] = ()
    names: Callable[[], tuple[str, ...]] | None = None
    """Class names in index order; None if the classes have no names."""
