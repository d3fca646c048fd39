"""Define a checked suite: typed values in which all names are resolved."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.core.contracts.adaptation import Adaptation
from bench.core.contracts.attack import Attack
from bench.core.contracts.detector import Detector
from bench.core.contracts.input_transforms import InputTransforms
from bench.core.contracts.parameters import Count
from bench.core.contracts.types import (
    Access,
    BallNorm,
    BoundMethod,
    CertificationMethod,
    Combination,
    Goal,
    Norm,
    Precision,
    Stop,
    Sweep,
)
from bench.models import serialized
from bench.suite.references import ReferenceFigure
from bench.suite.unions import ThreatUnion

TARGET_RULES = ("next", "complement", "random", "least-likely")
"""Rules by which each example gets its target class."""


@dataclasses.dataclass(frozen=True)
class Eps:
    """A radius as a number and as written in the suite ("8/255")."""

    value: float
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataEntry:
    """The [data] table."""

    name: str
    split: str = "test"
    limit: Count | None = None
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A [[models]] table."""

    name: str
    label: str = ""
    """Name in tables; defaults to `name`."""
    weights: str | None = None
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    predictions: Count = 1
    """Predictions of a random model that vote on one verdict."""
    access: Access = "gradient"
    """What it exposes; a query-only model exposes scores or labels."""
    allow: list[str] = dataclasses.field(default_factory=list)
    """Names of preflight findings that do not stop the run; they are still reported."""
    output: str | int | None = None
    """Which part of its output is the logits (index, key or attribute), or how one score an image
    is read ("binary", "sigmoid"); None: it returns logits, or there is no doubt."""
    batch_size: Count | None = None
    """The only number of images that it takes at once; None: any number."""
    detector: Detector | None = None
    """How it rejects images; None if it does not."""
    trust: bool = False
    """Whether the model's file (.pt2, .ts, .pt) may be read although that can run code in it."""

    def __post_init__(self) -> None:
        """Check what does not go together, without reading a serialized program's file.

        Raises:
            ValueError: The file is not declared trusted, or has settings that do not apply.
        """
        if self.detector is not None and self.access != "gradient":
            raise ValueError(
                f'detector: expected access = "gradient", got "{self.access}"; take one of the '
                "keys out (attacks by scores and labels run on any model)"
            )
        if not serialized.is_program_file(self.name):
            if self.trust:
                files = ", ".join(serialized.SUFFIXES)
                raise ValueError(
                    f"trust: expected only with a model's file ({files}), got '{self.name}'; "
                    "take the key out"
                )
        elif self.weights:
            raise ValueError(
                "weights: expected none, since a program's file brings its own; take the key out"
            )
        elif not self.trust:
            raise ValueError(
                f"expected trust = true for '{self.name}', since reading such a file can run code "
                "in it; say so (on the command line --trust) if you trust whoever made the file"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnsembleEntry:
    """A `source` of several models, which are attacked as one."""

    models: tuple[str, ...]
    """Labels."""
    combine: Combination
    weights: tuple[float, ...]
    """They sum to 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackEntry:
    """One attack of a suite; an [[attacks]] table makes one or several."""

    name: str
    label: str
    norm: Norm
    eps: tuple[Eps, ...]
    goal: Goal
    target: str | int | None
    params: Any
    """The attack's params dataclass, defaults included."""
    attack: Attack
    stop: Stop
    precision: Precision = "float32"
    transforms: InputTransforms | None = None
    """Transformations at every gradient."""
    samples: int = 1
    """Forward and backward passes that each step averages."""
    adaptation: Adaptation | None = None
    """Loss and gradients of the user's own; None without any."""
    batch_size: int | None = None
    family: str
    """Label of the table, which all its entries share."""
    source: str | None = None
    """Label of what the examples are crafted on; None for the judged model."""
    ensemble: EnsembleEntry | None = None
    """The models of the source, if it has several."""
    varied: str = ""
    """Name of the varied parameter; empty if there is none."""
    value: float | None = None
    """Its value in this entry."""
    seed: int | None = None
    """Seed of this entry; None for the suite's."""
    budgets: tuple[int, ...] = ()
    """Numbers of queries, ascending, at which the robust accuracy is reported."""
    victim_queries: int = 0
    """Most queries of the judged model per example and eps by an attack on a source; 0 for none."""
    skip_certified: tuple[BoundMethod, ...] = ()
    """Methods of bound propagation whose certified examples are not attacked; empty: all are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crosscheck:
    """A [[crosschecks]] table: labels of two attacks that should agree."""

    ours: str
    reference: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmoothingSettings:
    """Settings of randomised smoothing that outcomes depend on."""

    sigma: float
    """Standard deviation of the Gaussian noise, in units of pixel values."""
    n0: int
    """Draws that select the class."""
    n: int
    """Draws that estimate its probability."""
    alpha: float
    """Largest probability that one example's radius is wrong."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CertificateEntry:
    """An entry of `certify`."""

    method: CertificationMethod
    norm: BallNorm = "linf"
    """Of the certified balls."""
    smoothing: SmoothingSettings | None = None
    """None for bound propagation."""
    radii: tuple[Eps, ...] = ()
    """Ascending, at which smoothed results are tabulated; bounds use the eps of the attacks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """A checked suite; `base` is the folder that its file names start from."""

    name: str
    title: str
    seed: int
    stop: Stop
    sweep: Sweep
    data: DataEntry
    models: tuple[ModelEntry, ...]
    attacks: tuple[AttackEntry, ...]
    crosschecks: tuple[Crosscheck, ...]
    published: tuple[ReferenceFigure, ...]
    certify: tuple[CertificateEntry, ...]
    """How every model is certified."""
    unions: tuple[ThreatUnion, ...] = ()
    """Threat models whose union is reported, beside that of all."""
    corruption_baseline: str = ""
    """Label of the model whose errors normalise the mean corruption error; "" for none."""
    base: Path
    text: str
    """The TOML, stored with the run, so that a report needs no other file."""
