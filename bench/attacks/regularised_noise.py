"""Regularised noise: Adam on the perturbation, its norm held down by a penalty instead of a ball.

n_0 is small noise, or 0; minimise CE(f(x + n), t) + weight * R(n), R = sum |n_i| (l1), sum n_i^2
(l2) or 0 (none); untargeted, CE of the label is ascended instead. There is no eps: the noise that
the last step leaves is read at every eps.
Source: the idea of Szegedy et al. 2014, section 4.1, https://arxiv.org/abs/1312.6199, in the form
of noise learnt by gradient descent; Adam of Kingma and Ba 2015, algorithm 1.
Differs from the source: x + n is kept in the box after every step.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from bench.core.contracts.attack import Attack
from bench.core.contracts.parameters import Count, Length
from bench.core.contracts.rule import AttackBatch, Rule
from bench.core.contracts.types import Loss, Norm
from bench.core.rng import Noise
from bench.engine.functional import norms

BETA1, BETA2, TINY = 0.9, 0.999, 1e-8


@dataclass(frozen=True, kw_only=True)
class Params:
    steps: Count = 300
    lr: Annotated[float, Gt(0)] = 0.01
    weight: Annotated[float, Ge(0)] = 0.02
    """lambda, for R as a sum over all pixels."""
    regulariser: Literal["l1", "l2", "none"] = "l2"
    start: Annotated[Length, Ge(0)] = 0.01
    """Half the width of the uniform noise that it starts from."""
    loss: Loss = "cross-entropy"
    restarts: ClassVar[int] = 1


class State(NamedTuple):
    x: Tensor
    mean: Tensor
    """Running mean of the gradient, Adam's m."""
    square: Tensor
    """Running mean of its square, Adam's v."""


def init(items: AttackBatch, noise: Noise, params: Params, norm: Norm) -> State:
    x, zero = items.x, torch.zeros_like(items.x)
    if params.start > 0:
        x = (x + params.start * noise.uniform(x)).clamp(0, 1)
    return State(x, zero, zero)


def step(state: State, gradient: Tensor, items: AttackBatch, params: Params, norm: Norm) -> State:
    delta = state.x - items.x
    penalty = {"l1": delta.sign(), "l2": 2 * delta, "none": torch.zeros_like(delta)}
    down = params.weight * penalty[params.regulariser] - gradient
    mean = BETA1 * state.mean + (1 - BETA1) * down
    square = BETA2 * state.square + (1 - BETA2) * down.square()
    k = norms.per_row(items.k + 1, state.x).to(state.x.dtype)
    unbiased = mean / (1 - BETA1**k), square / (1 - BETA2**k)
    x = state.x - params.lr * unbiased[0] / (unbiased[1].sqrt() + TINY)
    return State(x.clamp(0, 1), mean, square)


def traits(params: Params, norm: Norm, eps: float) -> Mapping[str, str]:
    return {
        "start": f"uniform noise of {params.start:g}" if params.start else "clean",
        "steps": str(params.steps),
        "loss": f"{params.loss} + {params.weight:g} * {params.regulariser}",
    }


ATTACK = Attack(
    summary="Adam on the perturbation, its norm held down by an l1 or l2 penalty",
    source="Szegedy et al. 2014",
    params=Params,
    norms=("l2", "l1", "linf"),
    stochastic=True,
    scale_free=False,
    budget="minimum",
    rule=Rule(init=init, step=step),
    traits=traits,
)
