"""FGSM: one step of length eps along the steepest direction of the loss at x.

x_adv = clip(x + eps * sign(grad_x L(f(x), y)), 0, 1); in l2 the gradient over its length takes
the place of its sign.
Source: Goodfellow, Shlens, Szegedy 2015, section 4, https://arxiv.org/abs/1412.6572
Differs from the paper: clipped to the box, as in every library.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from bench.attacks.common import PROJECTION
from bench.core.contracts.attack import Attack
from bench.core.contracts.rule import AttackBatch, Rule
from bench.core.contracts.types import Loss, Norm
from bench.core.rng import Noise
from bench.engine.functional import norms, projections


@dataclass(frozen=True, kw_only=True)
class Params:
    loss: Loss = "cross-entropy"
    steps: ClassVar[int] = 1
    restarts: ClassVar[int] = 1


class State(NamedTuple):
    x: Tensor


def init(items: AttackBatch, noise: Noise, params: Params, norm: Norm) -> State:
    return State(items.x)


def step(state: State, gradient: Tensor, items: AttackBatch, params: Params, norm: Norm) -> State:
    radius = norms.per_row(items.eps, state.x)
    x = state.x + radius * projections.steepest_direction(gradient, norm)
    return State(projections.project(x, items.x, items.eps, norm))


def traits(params: Params, norm: Norm, eps: float) -> Mapping[str, str]:
    return {
        "start": "clean",
        "steps": "1",
        "alpha": f"{eps:.6g}",
        "loss": params.loss,
        "projection": PROJECTION[norm],
    }


ATTACK = Attack(
    summary="one step of length eps along the sign (l2: direction) of the gradient at x",
    source="Goodfellow et al. 2015",
    params=Params,
    norms=("linf", "l2"),
    rule=Rule(init=init, step=step, one_gradient=True),
    traits=traits,
)
