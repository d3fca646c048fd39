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

from bench.attacks.common import anneal, best_image, update_nearest
from bench.core.contracts.attack import IterativeAttack
from bench.core.contracts.parameters import Count, Length
from bench.core.contracts.rule import AttackBatch, Rule, StepInput
from bench.core.contracts.types import Loss, Norm
from bench.core.rng import Noise
from bench.engine.functional import norms, projections

LAST = 0.01
"""The last step's share of the first one's length."""


@dataclass(frozen=True, kw_only=True)
class Params:
    """Parameters of the attack."""

    steps: Count = 100
    alpha: Annotated[Length, Gt(0)] = 1.0
    """Length of the first step."""
    gamma: Annotated[float, Gt(0), Lt(1)] = 0.05
    """Share by which the length of the change grows or shrinks."""
    start: Annotated[Length, Gt(0)] = 1.0
    """eps_0, the first length."""
    loss: Loss = "margin"
    restarts: ClassVar[int] = 1


class State(NamedTuple):
    """State of the rows."""

    x: Tensor
    eps: Tensor
    """Length of the change, (n,)."""
    nearest: Tensor
    """Distance of the nearest adversarial iterate so far, (n,); infinite if there is none."""
    best: Tensor
    """That iterate; x if there is none."""


def init(batch: AttackBatch, noise: Noise, params: Params, norm: Norm) -> State:
    """Start at the clean image.

    Args:
        batch: Images, labels and radii of the rows.
        noise: Random numbers keyed by example and restart.
        params: Params of the attack.
        norm: Norm of the ball.

    Returns:
        State at step 0.
    """
    nothing = torch.full_like(batch.eps, torch.inf)
    return State(batch.x, torch.full_like(batch.eps, params.start), nothing, batch.x)


def respond(
    state: State, observed: StepInput, batch: AttackBatch, params: Params, norm: Norm
) -> State:
    """Set the length of the change by success, then step and rescale to that length.

    Args:
        state: State of the rows.
        observed: Forward and backward pass at the iterates.
        batch: Images, labels and radii of the rows.
        params: Params of the attack.
        norm: Norm of the ball.

    Returns:
        State after the step.
    """
    far = norms.distance(state.x, batch.x, norm)
    nearest, best = update_nearest(state.x, far, observed.fooled, state.nearest, state.best)

    eps = state.eps * torch.where(observed.fooled, 1 - params.gamma, 1 + params.gamma)
    corner = torch.maximum(batch.x, 1 - batch.x)  # no image is further away than this
    eps = torch.minimum(eps, norms.norm_of(corner, norm))

    alpha = anneal(params.alpha, LAST * params.alpha, batch.k, params.steps)
    step = norms.per_row(alpha, state.x) * projections.steepest_direction(observed.gradient, norm)
    towards = projections.steepest_direction(state.x + step - batch.x, norm)
    x = (batch.x + norms.per_row(eps, step) * towards).clamp(0, 1)
    return State(x, eps, nearest, best)


def traits(params: Params, norm: Norm, eps: float) -> Mapping[str, str]:
    """Describe the attack for cross-checks.

    Args:
        params: Params of the attack.
        norm: Norm of the ball.
        eps: Radius of the ball.

    Returns:
        Properties by name.
    """
    return {
        "start": "clean",
        "steps": str(params.steps),
        "alpha": f"{params.alpha:g} to {LAST * params.alpha:g} along a cosine",
        "gamma": f"{params.gamma:g}",
        "loss": params.loss,
        "projection": "sphere, then box",
    }


ATTACK = IterativeAttack(
    summary="least l2: the direction of the change and its length apart",
    source="Rony et al. 2019",
    params=Params,
    norms=("l2",),
    budget="minimum",
    rule=Rule(init=init, respond=respond, result=best_image, seeks=True),
    traits=traits,
)
