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
from bench.core.contracts.attack import IterativeAttack
from bench.core.contracts.parameters import Alpha, Count, step_size
from bench.core.contracts.rule import AttackBatch, Rule
from bench.core.contracts.types import Loss, Norm
from bench.core.rng import Noise
from bench.engine.functional import projections, sampling
from bench.engine.functional.projections import Box, NoBox


@dataclass(frozen=True, kw_only=True)
class Params:
    """Parameters of the attack."""

    steps: Count = 40
    alpha: Alpha = "2.5*eps/steps"
    random_start: bool = True
    restarts: Count = 1
    loss: Loss = "cross-entropy"
    l1_share: Share = 0.01
    """Of the pixels, those that a step in l1 moves; the other norms move all."""


class State(NamedTuple):
    """State of the rows."""

    x: Tensor
    alpha: Tensor
    """Length of a step, (n,)."""
    box: Box | NoBox


def init(batch: AttackBatch, noise: Noise, params: Params, norm: Norm) -> State:
    """Start at a random point of the ball, projected, or at the clean image.

    Args:
        batch: Images, labels and radii of the rows.
        noise: Random numbers keyed by example and restart.
        params: Params of the attack.
        norm: Norm of the ball.

    Returns:
        State at step 0.
    """
    alpha = step_size(params.alpha, batch.eps, params.steps)
    box = projections.make_box(batch.x, batch.eps, norm)
    if not params.random_start:
        return State(batch.x, alpha, box)
    start = batch.x + sampling.random_in_ball(batch.x, batch.eps, norm, noise)
    return State(projections.project_into(start, box, batch.x, batch.eps, norm), alpha, box)


def step(state: State, gradient: Tensor, batch: AttackBatch, params: Params, norm: Norm) -> State:
    """Step by alpha along the steepest direction and project.

    Args:
        state: State of the rows.
        gradient: Gradient of the loss to ascend, (n, c, h, w).
        batch: Images, labels and radii of the rows.
        params: Params of the attack.
        norm: Norm of the ball.

    Returns:
        State after the step.
    """
    x = ascend(state.x, gradient, state.alpha, norm, params.l1_share)
    return state._replace(x=projections.project_into(x, state.box, batch.x, batch.eps, norm))


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
        "start": "uniform in the ball" if params.random_start else "clean",
        "steps": str(params.steps),
        "alpha": f"{step_size(params.alpha, eps, params.steps):.6g}",
        "loss": params.loss,
        "restarts": str(params.restarts),
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
    summary="projected gradient ascent from a random start, with restarts",
    source="Madry et al. 2018",
    params=Params,
    norms=("linf", "l2", "l1"),
    stochastic=True,
    rule=Rule(init=init, step=step),
    traits=traits,
    caveats=caveats,
)
