"""PGD: projected steepest ascent from a random point of the ball, with restarts.

x_0 = P(x + u), u uniform in the ball; x_{k+1} = P(x_k + alpha * v_k), v_k the steepest direction
of the loss at x_k in the attack's norm, P the projection onto ball and box. In l1 v_k is spread
over a share of the pixels (Tramer and Boneh 2019, https://arxiv.org/abs/1904.13000).
Source: Madry et al. 2018, https://arxiv.org/abs/1706.06083 and its mnist_challenge code;
alpha = 2.5 eps / steps is its CIFAR-10 l2 convention, here the default for every norm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from bench.attacks.common import PROJECTION, Share, ascend, reach_caveats
from bench.core.contracts.attack import Attack
from bench.core.contracts.parameters import Alpha, Count, step_size
from bench.core.contracts.rule import AttackBatch, Rule
from bench.core.contracts.types import Loss, Norm
from bench.core.rng import Noise
from bench.engine.functional import projections, sampling


@dataclass(frozen=True, kw_only=True)
class Params:
    steps: Count = 40
    alpha: Alpha = "2.5*eps/steps"
    random_start: bool = True
    restarts: Count = 1
    loss: Loss = "cross-entropy"
    l1_share: Share = 0.01
    """Of the pixels, those that a step in l1 moves; the other norms move all."""


class State(NamedTuple):
    x: Tensor


def init(items: AttackBatch, noise: Noise, params: Params, norm: Norm) -> State:
    if not params.random_start:
        return State(items.x)
    start = items.x + sampling.random_in_ball(items.x, items.eps, norm, noise)
    return State(projections.project(start, items.x, items.eps, norm))


def step(state: State, gradient: Tensor, items: AttackBatch, params: Params, norm: Norm) -> State:
    alpha = step_size(params.alpha, items.eps, params.steps)
    x = ascend(state.x, gradient, alpha, norm, params.l1_share)
    return State(projections.project(x, items.x, items.eps, norm))


def traits(params: Params, norm: Norm, eps: float) -> Mapping[str, str]:
    return {
        "start": "uniform in the ball" if params.random_start else "clean",
        "steps": str(params.steps),
        "alpha": f"{step_size(params.alpha, eps, params.steps):.6g}",
        "loss": params.loss,
        "restarts": str(params.restarts),
        "projection": PROJECTION[norm],
    }


def caveats(params: Params, norm: Norm, eps: float) -> Sequence[str]:
    return reach_caveats(step_size(params.alpha, eps, params.steps), params.steps, eps)


ATTACK = Attack(
    summary="projected gradient ascent from a random start, with restarts",
    source="Madry et al. 2018",
    params=Params,
    norms=("linf", "l2", "l1"),
    stochastic=True,
    rule=Rule(init=init, step=step),
    traits=traits,
    caveats=caveats,
)
