"""What a file of `bench.engine.threats` defines: one THREAT record, a family of images.

A family is a threat model other than a ball: the images that its transform makes of x, such as all
rotations up to an angle. It uses the planner, identity, records, tables, report and gate of a norm:

- the `norm` of a suite, a cell, a record and a table is the family's name;
- `eps` is its level, whose meaning and range the family declares (a share, a severity, an area);
  level 0 is the clean image and is never attacked;
- an attack on a family is an `ExternalAttack` that returns a `TransformedBatch`: the images, and
  for each one the parameters that it was made with, which the record keeps as text;
- `verify` says, from these parameters, whether the image is one of the family. Box, finiteness and
  the model's output are checked before it, as for a ball.

Code of balls does not run for a family: projections and distances to a radius, the engine's rules,
minimum-norm searches, and the comparisons of the audit, which assume that a larger eps contains a
smaller one. Distances in the four norms are recorded all the same, for information.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from bench.core.contracts.types import Norm
from bench.core.rng import Noise


class TransformedBatch(NamedTuple):
    """What an attack on a family returns."""

    x_adv: Tensor
    """Images, (n, c, h, w)."""
    parameters: Tensor
    """What each was made with, (n, parameters of the family), float64."""


class VerifierInput(NamedTuple):
    """What a family's `verify` is given; nothing of it comes from the attack but the first two."""

    x_adv: Tensor
    """Returned images, (n, c, h, w), finite and in [0, 1]."""
    parameters: Tensor
    """Parameters that the attack declares, (n, parameters), float64."""
    x: Tensor
    """Clean images, (n, c, h, w)."""
    norm: Norm
    level: float
    """Of a family its level, of a norm the radius."""
    params: Any
    """Params of the attack."""
    noise: Noise
    """The random numbers that the attack was given."""


@dataclass(frozen=True, kw_only=True)
class ThreatFamily:
    """A threat model whose images are made by a transform."""

    summary: str
    source: str
    level: str
    """What eps is, for pages, such as "share of the image's area"."""
    example_levels: tuple[float, float]
    """A lower and a higher level, which tests use."""
    version: int = 1
    """Part of the identity of the family's cells. Raise it when the set of images changes."""
    find_level_problem: Callable[[float], str]
    """(level above 0) -> what was expected if it is not allowed; "" if it is."""
    verify: Callable[[VerifierInput], list[str]]
    """For each image why it is not one of the family; "" if it is."""
    describe: Callable[[list[float]], str]
    """(parameters of one image) -> text for its record."""
    transforms_all: bool = False
    """Whether the model has no influence on the image. Every example is then transformed, also
    those misclassified without it, so that an error rate can be computed."""
