"""What a file of a model defines: one MODEL record."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from bench.core.contracts.types import Norm, Shape


@dataclass(frozen=True, kw_only=True)
class PublishedFigure:
    """A figure that a model's source reports, to be shown beside the measured one."""

    attacks: tuple[str, ...]
    """Registered names of the attacks that it is comparable with; empty for clean accuracy, which
    is compared with any."""
    norm: Norm
    eps: float
    figure: Literal["clean_accuracy", "robust_accuracy"]
    value: float
    """Share in [0, 1]."""
    source: str
    note: str = ""


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
    """Names of these. Where there are none and none ship with bench, `build` returns the model
    with its weights, and a suite's entry needs no `weights`."""
    figures: Callable[..., Sequence[PublishedFigure]] | None = None
    """(**params) -> figures that the model's source reports; params are those of `build`."""
    names: Callable[[], tuple[str, ...]] | None = None
    """Class names in index order; None if the classes have no names."""
