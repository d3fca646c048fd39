"""FMN: ascend the difference of logits in a ball that shrinks while it fools and grows while not.

x_0 = x; x_{k+1} = P(x_k + alpha_k g_k / ||g_k||_2), P the projection onto the ball of radius eps_k
around x and the box together. While nothing was found, eps_k = ||x_k - x|| + |L| / ||g_k||_*, the
distance of the linearised boundary (||.||_* the dual norm); from then on (1 - gamma_k) eps at an
adversarial iterate, never more than the nearest one's distance, and (1 + gamma_k) eps at any other.
In l0, where there is no dual norm, eps starts at 0 and changes by at least one entry a step.
alpha and gamma fall along half a cosine. The nearest adversarial iterate is returned.
Source: Pintor et al. 2021, algorithm 1, https://arxiv.org/abs/2102.12827
Differs from the paper: it may start from another class's image, this always starts at x; it takes
ball and box one after the other and loses to the box what the ball allowed, so that in l2 and 100
steps it finds nothing for a quarter of MNIST, whose pixels lie on the walls; its alpha is a length,
and too short for a robust net, where this is a share of the ball's own width, which falls only once
something was found and is twice as large before; the linearised boundary's distance is taken
(1 + gamma_k) times, so that an iterate does not come to lie on it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from bench.attacks.common import anneal, best_image, update_nearest
from bench.core.contracts.attack import IterativeAttack
from bench.core.contracts.parameters import Count
from bench.core.contracts.rule import AttackBatch, Rule, StepInput
from bench.core.contracts.types import Loss, Norm
from bench.core.rng import Noise
from bench.engine.functional import norms, projections

LAST = 0.01
"""The last share of the radius over the first one."""


@dataclass(frozen=True, kw_only=True)
class Params:
    """Parameters of the attack."""

    steps: Count = 100
    alpha: Annotated[float, Gt(0)] = 1.0
    """Length of a step at first, as a share of the ball's largest l2 radius."""
    gamma: Annotated[float, Gt(0), Lt(1)] = 0.05
    """Share by which the radius changes at first."""
    gamma_last: Annotated[float, Ge(0), Lt(1)] = 0.001
    """And at last."""
    loss: Loss = "logit-difference"
    restarts: ClassVar[int] = 1


class State(NamedTuple):
    """State of the rows."""

    x: Tensor
    eps: Tensor
    """Radius of the ball, (n,)."""
    nearest: Tensor
    """Distance of the nearest adversarial iterate so far, (n,); infinite if there is none."""
    best: Tensor
    """That iterate; x if there is none."""


def init(batch: AttackBatch, noise: Noise, params: Params, norm: Norm) -> State:
    """Start at the clean image with an infinite radius, in l0 with a radius of 0.

    Args:
        batch: Images, labels and radii of the rows.
        noise: Random numbers keyed by example and restart.
        params: Params of the attack.
        norm: Norm of the ball.

    Returns:
        State at step 0.
    """
    nothing = torch.full_like(batch.eps, torch.inf)
    start = torch.zeros_like(batch.eps) if norm == "l0" else nothing
    return State(batch.x, start, nothing, batch.x)


def respond(
    state: State, observed: StepInput, batch: AttackBatch, params: Params, norm: Norm
) -> State:
    """Shrink or grow the ball, step along the gradient and project onto ball and box.

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

    gamma = anneal(params.gamma, params.gamma_last, batch.k, params.steps)
    if norm == "l0":
        larger = torch.maximum(state.eps + 1, (state.eps * (1 + gamma)).floor())
        smaller = torch.minimum(state.eps - 1, (state.eps * (1 - gamma)).floor())
    else:
        slope = norms.norm_of(observed.gradient, norms.DUAL[norm])
        loss = observed.loss.to(far)  # of a model in float64 wider than the image
        boundary = far + loss.abs() / slope.clamp_min(torch.finfo(slope.dtype).tiny)
        larger = (1 + gamma) * torch.where(nearest.isfinite(), state.eps, boundary)
        smaller = state.eps * (1 - gamma)
    eps = torch.where(observed.fooled, torch.minimum(smaller, nearest), larger)
    corner = torch.maximum(batch.x, 1 - batch.x)  # no image is further away than this
    eps = torch.minimum(eps, norms.norm_of(corner, norm))

    share = anneal(params.alpha, LAST * params.alpha, batch.k, params.steps)
    share = torch.where(nearest.isfinite(), share, 2 * params.alpha)
    alpha = (share * _width(eps, norm, batch.x[0].numel())).to(eps)
    step = norms.per_row(alpha, state.x) * projections.steepest_direction(observed.gradient, "l2")
    x = projections.project_jointly(state.x + step, batch.x, eps, norm)
    return State(x, eps, nearest, best)


def _width(eps: Tensor, norm: Norm, d: int) -> Tensor:
    """Return the largest l2 distance from the centre of a ball in d dimensions, (n,).

    In l0 it is that of the box, since a step decides which entries move, and then to their walls.
    """
    spread: dict[Norm, float] = {"linf": math.sqrt(d), "l2": 1.0, "l1": 1.0}
    return eps * spread[norm] if norm != "l0" else torch.full_like(eps, math.sqrt(d))


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
        "alpha": f"{params.alpha:g} to {LAST * params.alpha:g} radii along a cosine",
        "gamma": f"{params.gamma:g} to {params.gamma_last:g} along a cosine",
        "loss": params.loss,
        "projection": "ball and box together",
    }


ATTACK = IterativeAttack(
    summary="least distance: ascent in a ball that shrinks while it fools",
    source="Pintor et al. 2021",
    params=Params,
    norms=("linf", "l2", "l1", "l0"),
    budget="minimum",
    rule=Rule(init=init, respond=respond, result=best_image, seeks=True),
    traits=traits,
    version=2,  # since 2, the projection in l2 reaches a corner at exactly the radius
)
