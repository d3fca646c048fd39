"""DDN: step along the loss, then set the length of the change: shorter if it fools, else longer.

delta_0 = 0, eps_0 = 1; delta_{k+1} = delta_k + alpha_k g_k / ||g_k||_2; eps_{k+1} is
(1 - gamma) eps_k if x_k is adversarial, else (1 + gamma) eps_k; x_{k+1} = x + eps_{k+1}
delta_{k+1} / ||delta_{k+1}||_2, clipped to the box. alpha falls from 1 to 0.01 along half a
cosine. The nearest adversarial iterate is returned.
Source: Rony et al. 2019, algorithm 1, https://arxiv.org/abs/1811.09600
Differs from the paper: images are not rounded to 8 bits, which the harness judges apart; the
default loss has cross-entropy's direction, which is all that is used, without its saturation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from bench.attacks.common import anneal, update_nearest
from bench.core.contracts.attack import Attack
from bench.core.contracts.parameters import Count, Length
from bench.core.contracts.rule import AttackBatch, Rule, StepInput
from bench.core.contracts.types import Loss, Norm
from bench.core.rng import Noise
from bench.engine.functional import norms, projections

LAST = 0.01
"""The last step's share of the first one's length."""


@dataclass(frozen=True, kw_only=True)
class Params:
    steps: Count = 100
    alpha: Annotated[Length, Gt(0)] = 1.0
    """Length of the first step."""
    gamma: Annotated[float, Gt(0), Lt(1)] = 0.05
    """Share by which the length of the change is made larger or smaller."""
    start: Annotated[Length, Gt(0)] = 1.0
    """eps_0, the first length."""
    loss: Loss = "margin"
    restarts: ClassVar[int] = 1


class State(NamedTuple):
    x: Tensor
    eps: Tensor
    """Length of the change, (n,)."""
    nearest: Tensor
    """Distance of the nearest adversarial iterate so far, (n,); infinite if there is none."""
    best: Tensor
    """That iterate; x if there is none."""


def init(items: AttackBatch, noise: Noise, params: Params, norm: Norm) -> State:
    nothing = torch.full_like(items.eps, torch.inf)
    return State(items.x, torch.full_like(items.eps, params.start), nothing, items.x)


def respond(state: State, seen: StepInput, items: AttackBatch, params: Params, norm: Norm) -> State:
    far = norms.distance(state.x, items.x, norm)
    nearest, best = update_nearest(state.x, far, seen.fooled, state.nearest, state.best)

    eps = state.eps * torch.where(seen.fooled, 1 - params.gamma, 1 + params.gamma)
    corner = torch.maximum(items.x, 1 - items.x)  # no image is further away than this
    eps = torch.minimum(eps, norms.norm_of(corner, norm))

    alpha = anneal(params.alpha, LAST * params.alpha, items.k, params.steps)
    step = norms.per_row(alpha, state.x) * projections.steepest_direction(seen.gradient, norm)
    towards = projections.steepest_direction(state.x + step - items.x, norm)
    x = (items.x + norms.per_row(eps, step) * towards).clamp(0, 1)
    return State(x, eps, nearest, best)


def result(state: State) -> Tensor:
    return state.best


def traits(params: Params, norm: Norm, eps: float) -> Mapping[str, str]:
    return {
        "start": "clean",
        "steps": str(params.steps),
        "alpha": f"{params.alpha:g} to {LAST * params.alpha:g} along a cosine",
        "gamma": f"{params.gamma:g}",
        "loss": params.loss,
        "projection": "sphere, then box",
    }


ATTACK = Attack(
    summary="least l2: the direction of the change and its length apart",
    source="Rony et al. 2019",
    params=Params,
    norms=("l2",),
    budget="minimum",
    rule=Rule(init=init, respond=respond, result=result, seeks=True),
    traits=traits,
)
