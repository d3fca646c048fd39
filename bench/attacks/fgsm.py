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
from bench.core.contracts.attack import IterativeAttack
from bench.core.contracts.rule import AttackBatch, Rule
from bench.core.contracts.types import Loss, Norm
from bench.core.rng import Noise
from bench.engine.functional import norms, projections


@dataclass(frozen=True, kw_only=True)
class Params:
    """Parameters of the attack."""

    loss: Loss = "cross-entropy"
    steps: ClassVar[int] = 1
    restarts: ClassVar[int] = 1


class State(NamedTuple):
    """State of the rows."""

    x: Tensor


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
    return State(batch.x)


def step(state: State, gradient: Tensor, batch: AttackBatch, params: Params, norm: Norm) -> State:
    """Step by eps along the steepest direction and project.

    Args:
        state: State of the rows.
        gradient: Gradient of the loss to ascend, (n, c, h, w).
        batch: Images, labels and radii of the rows.
        params: Params of the attack.
        norm: Norm of the ball.

    Returns:
        State after the step.
    """
    radius = norms.per_row(batch.eps, state.x)
    x = state.x + radius * projections.steepest_direction(gradient, norm)
    return State(projections.project(x, batch.x, batch.eps, norm))


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
        "steps": "1",
        "alpha": f"{eps:.6g}",
        "loss": params.loss,
        "projection": PROJECTION[norm],
    }


ATTACK = IterativeAttack(
    summary="one step of length eps along the sign (l2: direction) of the gradient at x",
    source="Goodfellow et al. 2015",
    params=Params,
    norms=("linf", "l2"),
    rule=Rule(init=init, step=step, one_gradient=True),
    traits=traits,
)
