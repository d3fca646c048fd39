"""The two sides of an experiment as plain values: what attacks, what it is given, how it counts."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import pandas as pd
from torch import Tensor, nn

from bench.core.contracts.attack import AttackSpec
from bench.evaluation import metrics
from bench.evaluation.metrics import Outcomes

Count = Callable[[pd.DataFrame], Outcomes]
"""Records -> which examples are robust."""


class Side(NamedTuple):
    """One attack at one eps, and the model that it attacks; the judge asks the bare model."""

    spec: AttackSpec
    model: nn.Module
    rows: int
    double: bool = False
    """Whether the model computes in float64."""
    then: Callable[[Tensor], Tensor] | None = None
    """What the attack is given in place of the logits (n, classes), made of them."""


class Setup(NamedTuple):
    """Two sides, and how the images of each are counted."""

    ours: Side
    reference: Side
    count_ours: Count = metrics.robust_examples
    count_reference: Count = metrics.robust_examples


class Observed(NamedTuple):
    """What an attack was seen to do; None where it could not be seen."""

    start: Tensor | None = None
    """Where it first asked for a gradient, for each example of the data, (n, c, h, w); the image
    itself where an example was not attacked."""
    steps: int | None = None
    """Gradients that it asked for."""
    alpha: float | None = None
    """Length of its longest first step, in the threat's norm."""
    violations: bool = False
    """Whether any of its images broke the threat model."""
    levels: bool = False
    """Whether its images hold 8-bit levels alone."""


def attacked(side: Side) -> nn.Module:
    """The model that the side's attack is given."""
    model = _InDouble(side.model) if side.double else side.model
    return model if side.then is None else _Then(model, side.then)


class _InDouble(nn.Module):
    """A model whose answers, and so their gradients, are computed in float64."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).double()

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.model(x.double())
        return answer


class _Then(nn.Module):
    """A model whose answers go through a function."""

    def __init__(self, model: nn.Module, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.then = model, then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.model(x))
