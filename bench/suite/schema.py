"""What a suite says once it is read and checked: plain values, nothing looked up any more."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.core.contracts.attack import Attack, Count
from bench.core.contracts.types import (
    Access,
    CertificationMethod,
    Goal,
    Norm,
    Precision,
    Stop,
    Sweep,
)
from bench.models import serialized
from bench.suite.references import ReferenceFigure

TARGET_RULES = ("next", "complement", "random", "least-likely")


@dataclasses.dataclass(frozen=True)
class Eps:
    """A radius as a number and as the suite wrote it ("8/255")."""

    value: float
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataEntry:
    name: str
    split: str = "test"
    limit: Count | None = None
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelEntry:
    name: str
    label: str = ""
    """Name in tables; the model's name if the suite gives none."""
    weights: str | None = None
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    predictions: Count = 1
    """Times that a model that answers at random is asked for one verdict."""
    access: Access = "gradient"
    """What it shows of itself; a model that only answers queries shows scores or labels."""
    allow: list[str] = dataclasses.field(default_factory=list)
    """Names of preflight's findings that do not stop the run; they are noted all the same."""
    trust: bool = False
    """Whether the model's file (.pt2, .ts, .pt) may be read although that can run code in it."""

    def __post_init__(self) -> None:
        """Check what only a model in a file of its own has; nothing of the file is read here.

        Raises: ValueError if its user has not said that the file is trusted.
        """
        if not serialized.is_program_file(self.name):
            if self.trust:
                files = ", ".join(serialized.SUFFIXES)
                raise ValueError(
                    f"trust: expected only with a model's file ({files}), got '{self.name}'; "
                    "take the key out"
                )
        elif self.weights:
            told = "expected none, since a program's file brings its own; take the key out"
            raise ValueError(f"weights: {told}")
        elif not self.trust:
            raise ValueError(
                f"expected trust = true for '{self.name}', since reading such a file can run code "
                "in it; say so (on the command line --trust) if you trust whoever made the file"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackEntry:
    name: str
    label: str
    norm: Norm
    eps: tuple[Eps, ...]
    goal: Goal
    target: str | int | None
    params: Any
    """The attack's params dataclass, defaults written out."""
    attack: Attack
    stop: Stop
    precision: Precision = "float32"
    samples: int = 1
    """Passes over which each look is averaged."""
    batch_size: int | None = None
    family: str
    """The label as the suite wrote it; entries that one table gave rise to share it."""
    source: str | None = None
    """Label of the model that the examples are crafted on; None: the one they are judged on."""
    varied: str = ""
    """Name of the parameter that the suite varies."""
    value: float | None = None
    """What it is in this entry."""
    seed: int | None = None
    """What the attack draws by in this entry; None: the suite's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crosscheck:
    ours: str
    reference: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """A checked suite; `base` is the folder that file names in it start from."""

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
    certify: tuple[CertificationMethod, ...]
    """How every model is bounded at each eps of the L-inf attacks; empty if it is not."""
    base: Path
    text: str
    """The TOML as read; kept with the run, so that a report needs nothing else."""
