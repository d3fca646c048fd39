"""MI-FGSM: iterated steps along the momentum of normalised gradients, from x itself.

m_{k+1} = mu * m_k + g_k / ||g_k||_1; x_{k+1} = P(x_k + alpha * sign(m_{k+1})), alpha = eps / T.
In l2 the step is m over its length; in l1 it is spread over a share of the pixels.
Source: Dong et al. 2018, algorithm 1, https://arxiv.org/abs/1710.06081
Differs from the paper: a gradient of zeros adds nothing to the momentum, where the paper's
division is 0/0; iterates are projected, so that alpha may exceed eps / T.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from annotated_types import Ge
from torch import Tensor

from bench.attacks.common import PROJECTION, Share, ascend, reach_caveats
from bench.core.contracts.attack import IterativeAttack
from bench.core.contracts.parameters import Alpha, Count, step_size
from bench.core.contracts.rule import AttackBatch, Rule
from bench.core.contracts.types import Loss, Norm
from bench.core.rng import Noise
from bench.engine.functional import norms, projections
from bench.engine.functional.projections import Box, NoBox


@dataclass(frozen=True, kw_only=True)
class Params:
    """Parameters of the attack."""

    steps: Count = 10
    alpha: Alpha = "eps/steps"
    decay: Annotated[float, Ge(0)] = 1.0
    """mu, the share of the momentum that is kept."""
    gathers: Literal["gradients", "directions"] = "gradients"
    """What the momentum adds up: gradients over their l1 norm, as in the paper, or the steepest
    directions, in linf their signs, as Foolbox 3.3 does."""
    loss: Loss = "cross-entropy"
    l1_share: Share = 0.01
    """Of the pixels, those that a step in l1 moves; the other norms move all."""
    restarts: ClassVar[int] = 1


class State(NamedTuple):
    """State of the rows."""

    x: Tensor
    momentum: Tensor
    alpha: Tensor
    """Length of a step, (n,)."""
    box: Box | NoBox


def init(batch: AttackBatch, noise: Noise, params: Params, norm: Norm) -> State:
    """Start at the clean image with a momentum of 0.

    Args:
        batch: Images, labels and radii of the rows.
        noise: Random numbers keyed by example and restart.
        params: Params of the attack.
        norm: Norm of the ball.

    Returns:
        State at step 0.
    """
    return State(
        x=batch.x,
        momentum=torch.zeros_like(batch.x),
        alpha=step_size(params.alpha, batch.eps, params.steps),
        box=projections.make_box(batch.x, batch.eps, norm),
    )


def step(state: State, gradient: Tensor, batch: AttackBatch, params: Params, norm: Norm) -> State:
    """Add the normalised gradient to the momentum, step along it and project.

    Args:
        state: State of the rows.
        gradient: Gradient of the loss to ascend, (n, c, h, w).
        batch: Images, labels and radii of the rows.
        params: Params of the attack.
        norm: Norm of the ball.

    Returns:
        State after the step.
    """
    momentum = params.decay * state.momentum + _gathered(gradient, params, norm)
    x = ascend(state.x, momentum, state.alpha, norm, params.l1_share)
    x = projections.project_into(x, state.box, batch.x, batch.eps, norm)
    return state._replace(x=x, momentum=momentum)


def _gathered(gradient: Tensor, params: Params, norm: Norm) -> Tensor:
    """Normalise a gradient as the momentum adds it up; zeros stay zeros."""
    if params.gathers == "directions":
        return projections.steepest_direction(gradient, norm)
    size = norms.per_row(norms.norm_of(gradient, "l1"), gradient)
    return torch.where(size > 0, gradient / size, torch.zeros_like(gradient))


GATHERED = {"gradients": "gradient over its l1 norm", "directions": "steepest direction"}


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
        "alpha": f"{step_size(params.alpha, eps, params.steps):.6g}",
        "loss": params.loss,
        "momentum": f"mu={params.decay:g}, {GATHERED[params.gathers]}",
        "projection": PROJECTION[norm],
    }


def caveats(params: Params, norm: Norm, eps: float) -> Sequence[str]:
    """Return the caveat if alpha * steps is less than eps.

    Args:
        params: Params of the attack.
        norm: Norm of the ball.
        eps: Radius of the ball.

    Returns:
        Sentences for the report.
    """
    return reach_caveats(step_size(params.alpha, eps, params.steps), params.steps, eps)


ATTACK = IterativeAttack(
    summary="iterated steps along the momentum of normalised gradients",
    source="Dong et al. 2018",
    params=Params,
    norms=("linf", "l2", "l1"),
    rule=Rule(init=init, step=step),
    traits=traits,
    caveats=caveats,
)
