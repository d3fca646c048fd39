"""sigma-zero: descend loss and a smooth count of changed entries, then drop the small changes.

With delta = x_k - x and d entries, g is the gradient of max(z_y - max over i != y of z_i, 0) +
1/d * sum_i delta_i^2 / (delta_i^2 + sigma), divided by its largest entry. Adam steps along g, the
box is kept, and entries below tau are set to 0; tau rises by t * eta where x_k is adversarial and
falls by as much where it is not. eta falls from eta_0 to a tenth of it along half a cosine. The
adversarial iterate with the fewest changed entries is returned.
Source: Cinà et al. 2024, algorithm 1, https://arxiv.org/abs/2402.01879; that the step is Adam's
(beta 0.9 and 0.999) and where the cosine ends are its authors' code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from bench.attacks.common import anneal, best_image, update_nearest
from bench.core.contracts.attack import IterativeAttack
from bench.core.contracts.parameters import Count, Length
from bench.core.contracts.rule import AttackBatch, Rule, StepInput
from bench.core.contracts.types import Loss, Norm
from bench.core.rng import Noise
from bench.engine.functional import norms

LAST = 0.1
"""The last step's share of the first one's length."""
BETA_1, BETA_2, TINY = 0.9, 0.999, 1e-8
"""Adam's defaults: Kingma and Ba 2015, https://arxiv.org/abs/1412.6980"""


@dataclass(frozen=True, kw_only=True)
class Params:
    """Parameters of the attack."""

    steps: Count = 1000
    alpha: Annotated[Length, Gt(0)] = 1.0
    """eta_0, the first step's length for one entry."""
    sigma: Annotated[float, Gt(0)] = 1e-3
    """The smaller, the closer the smooth count is to the true one."""
    threshold: Annotated[Length, Ge(0), Le(1)] = 0.3
    """tau_0: changes below it are dropped at first."""
    threshold_step: Annotated[float, Ge(0)] = 0.01
    """t: what the threshold changes by, as a share of the step's length."""
    loss: Loss = "logit-difference"
    restarts: ClassVar[int] = 1


class State(NamedTuple):
    """State of the rows."""

    x: Tensor
    first: Tensor
    """Adam's mean of g, as x."""
    second: Tensor
    """Adam's mean of g squared, as x."""
    threshold: Tensor
    """tau, (n,)."""
    nearest: Tensor
    """Changed entries of the best adversarial iterate so far, (n,); infinite if there is none."""
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
    zero = torch.zeros_like(batch.x)
    nothing = torch.full_like(batch.eps, torch.inf)
    threshold = torch.full_like(batch.eps, params.threshold)
    return State(batch.x, zero, zero, threshold, nothing, batch.x)


def respond(
    state: State, observed: StepInput, batch: AttackBatch, params: Params, norm: Norm
) -> State:
    """Make Adam's step on loss and smooth count, then drop the changes below the threshold.

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

    delta = state.x - batch.x
    g = _count_slope(delta, params.sigma) - torch.where(
        norms.per_row(observed.fooled, delta), torch.zeros_like(delta), observed.gradient
    )
    largest = norms.norm_of(g, "linf").clamp_min(torch.finfo(g.dtype).tiny)
    g = g / norms.per_row(largest, g)
    first = BETA_1 * state.first + (1 - BETA_1) * g
    second = BETA_2 * state.second + (1 - BETA_2) * g.square()
    steps = norms.per_row(batch.k + 1, g)
    mean, square = first / (1 - BETA_1**steps), second / (1 - BETA_2**steps)

    alpha = anneal(params.alpha, LAST * params.alpha, batch.k, params.steps)
    x = state.x - norms.per_row(alpha, g) * mean / (square.sqrt() + TINY)
    x = x.clamp(0, 1)
    change = params.threshold_step * torch.where(observed.fooled, alpha, -alpha)
    threshold = (state.threshold + change).clamp(0, 1).to(state.threshold)
    small = (x - batch.x).abs() < norms.per_row(threshold, x)
    return State(torch.where(small, batch.x, x), first, second, threshold, nearest, best)


def _count_slope(delta: Tensor, sigma: float) -> Tensor:
    """Compute the gradient of 1/d * sum_i delta_i^2 / (delta_i^2 + sigma) for each row."""
    d = delta[0].numel()
    return 2 * sigma * delta / (delta.square() + sigma).square() / d


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
        "alpha": f"{params.alpha:g} to {LAST * params.alpha:g} along a cosine, Adam",
        "sigma": f"{params.sigma:g}",
        "threshold": f"{params.threshold:g}, changed by {params.threshold_step:g} alpha",
        "loss": f"{params.loss} and a smooth count of changed entries",
    }


ATTACK = IterativeAttack(
    summary="fewest changed entries: a smooth count and a threshold that adapts",
    source="Cinà et al. 2024",
    params=Params,
    norms=("l0",),
    scale_free=False,
    budget="minimum",
    rule=Rule(init=init, respond=respond, result=best_image, seeks=True),
    traits=traits,
)
