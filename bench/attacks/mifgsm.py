"""MI-FGSM: iterated steps along the momentum of normalised gradients, from x itself.

m_{k+1} = mu * m_k + g_k / ||g_k||_1; x_{k+1} = P(x_k + alpha * sign(m_{k+1})), alpha = eps / T.
In l2 the step is m over its length.
Source: Dong et al. 2018, algorithm 1, https://arxiv.org/abs/1710.06081
Differs from the paper: a gradient of zeros adds nothing to the momentum, where the paper's
division is 0/0; iterates are projected, so that alpha may exceed eps / T.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from annotated_types import Ge
from torch import Tensor

from bench import geometry
from bench.attacks import PROJECTION, reach
from bench.contracts import Alpha, Attack, Count, Items, Loss, Norm, Rule, step_size
from bench.rng import Noise


@dataclass(frozen=True, kw_only=True)
class Params:
    steps: Count = 10
    alpha: Alpha = "eps/steps"
    decay: Annotated[float, Ge(0)] = 1.0
    """mu, the share of the momentum that is kept."""
    loss: Loss = "cross-entropy"
    restarts: ClassVar[int] = 1


class State(NamedTuple):
    x: Tensor
    momentum: Tensor


def init(items: Items, noise: Noise, params: Params, norm: Norm) -> State:
    return State(items.x, torch.zeros_like(items.x))


def step(state: State, gradient: Tensor, items: Items, params: Params, norm: Norm) -> State:
    size = geometry.per_row(geometry.norm_of(gradient, "l1"), gradient)
    normalised = torch.where(size > 0, gradient / size, torch.zeros_like(gradient))
    momentum = params.decay * state.momentum + normalised
    alpha = geometry.per_row(step_size(params.alpha, items.eps, params.steps), state.x)
    x = state.x + alpha * geometry.steepest(momentum, norm)
    return State(geometry.project(x, items.x, items.eps, norm), momentum)


def traits(params: Params, norm: Norm, eps: float) -> Mapping[str, str]:
    return {
        "start": "clean",
        "steps": str(params.steps),
        "alpha": f"{step_size(params.alpha, eps, params.steps):.6g}",
        "loss": params.loss,
        "momentum": f"mu={params.decay:g}, gradient over its l1 norm",
        "projection": PROJECTION[norm],
    }


def caveats(params: Params, norm: Norm, eps: float) -> Sequence[str]:
    return reach(step_size(params.alpha, eps, params.steps), params.steps, eps)


ATTACK = Attack(
    summary="iterated steps along the momentum of normalised gradients",
    source="Dong et al. 2018",
    params=Params,
    norms=("linf", "l2"),
    rule=Rule(init=init, step=step),
    traits=traits,
    caveats=caveats,
)
