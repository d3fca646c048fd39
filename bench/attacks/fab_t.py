"""FAB-T: steps onto the linearised boundary to one wrong class after another, drawn towards x.

At an iterate x_k the difference of logits z_target - z_label is taken for linear: its zeros are a
hyperplane. d1 and d2 are the shortest steps in the box onto it, from x_k and from the image x; with
a = min(||d1|| / (||d1|| + ||d2||), alpha_max), eta going a little beyond the boundary,
x_{k+1} = clip((1 - a) (x_k + eta d1) + a (x + eta d2)). An adversarial iterate is kept if it is the
nearest so far, and pulled back to x + beta (x_k - x). The wrong classes are those likeliest on the
clean image; any of them is a success. A further restart begins at random, half as far as the
nearest find.
Source: Croce and Hein 2020, algorithm 1, https://arxiv.org/abs/1907.02044; towards one class at a
time as in section 4 of https://arxiv.org/abs/2003.01690
Differs from the paper: its authors' code evaluates every iterate twice, to judge it and, pulled
back, to linearise there; here one pass does both. A point pulled back from a find that came at
least 1 % nearer is evaluated, and if adversarial is kept and pulled back again; from any other
adversarial iterate the step begins at the point pulled back and takes the hyperplane of the
iterate, which lies nearer to the boundary. The first of the `steps` passes is at x. There is no
final search, as in that code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from bench.attacks.common import best_image, update_nearest
from bench.core.contracts.attack import IterativeAttack
from bench.core.contracts.parameters import Count
from bench.core.contracts.rule import AttackBatch, Rule, StepInput
from bench.core.contracts.types import Loss, Norm
from bench.core.rng import Noise
from bench.engine.functional import hyperplane, norms
from bench.engine.functional.norms import per_row

TINY = 1e-8
"""Least length of a step when two are compared, so that 0 over 0 is one half."""
WORTH = 0.99
"""Share of the least distance within which the point pulled back from a find is evaluated."""


@dataclass(frozen=True, kw_only=True)
class Params:
    """Parameters of the attack."""

    steps: Count = 100
    """Forward and backward passes for each class; 150 are as many as 100 iterations of the authors'
    code."""
    targets: Count = 9
    restarts: Count = 1
    """Runs towards each class; all but the first from a random point."""
    alpha_max: Annotated[float, Ge(0), Le(1)] = 0.1
    """Largest weight of the way from x itself."""
    eta: Annotated[float, Ge(1)] = 1.05
    """Length of a step over that of the one onto the hyperplane."""
    beta: Annotated[float, Gt(0), Le(1)] = 0.9
    """Share of its distance at which an adversarial iterate is left."""
    loss: ClassVar[Loss] = "label-and-target"


class State(NamedTuple):
    """State of the rows."""

    x: Tensor
    nearest: Tensor
    """Distance of the nearest adversarial iterate so far, (n,); infinite if there is none."""
    best: Tensor
    """That iterate; x if there is none."""


def init(batch: AttackBatch, noise: Noise, params: Params, norm: Norm) -> State:
    """Start at the clean image; later restarts at random, half as far as the nearest find.

    Args:
        batch: Images, labels and radii of the rows.
        noise: Random numbers keyed by example and restart.
        params: Params of the attack.
        norm: Norm of the ball.

    Returns:
        State at step 0.
    """
    x, nothing = batch.x, torch.full_like(batch.eps, torch.inf)
    if params.restarts > 1:
        again = per_row(batch.restart > 0, x)
        x = torch.where(again, _random_start(batch, noise, norm), x)
    return State(x, nothing, batch.x)


def _random_start(batch: AttackBatch, noise: Noise, norm: Norm) -> Tensor:
    """Draw a point in a random direction, at half the least known distance.

    That is the distance of the nearest find or the radius, whichever is less, and that of the most
    distant image if neither is finite.
    """
    draw = noise.uniform(batch.x) if norm == "linf" else noise.normal(batch.x)
    corner = torch.maximum(batch.x, 1 - batch.x)
    radius = torch.minimum(batch.eps, batch.nearest)
    radius = torch.minimum(radius, norms.norm_of(corner, norm))
    scale = radius / 2 / norms.norm_of(draw, norm)
    return (batch.x + per_row(scale, draw) * draw).clamp(0, 1)


def respond(
    state: State, observed: StepInput, batch: AttackBatch, params: Params, norm: Norm
) -> State:
    """Pull back a new find, or step onto the linearised boundary, drawn towards x.

    Args:
        state: State of the rows.
        observed: Forward and backward pass at the iterates.
        batch: Images, labels and radii of the rows.
        params: Params of the attack.
        norm: Norm of the ball.

    Returns:
        State after the step.
    """
    x, offset = state.x, state.x - batch.x
    pulled = batch.x + params.beta * offset
    start = torch.where(per_row(observed.fooled, x), pulled, x)
    points = torch.stack([start, batch.x])
    rise = (observed.gradient * (x - points)).flatten(2).sum(2) - observed.loss.to(x)
    steps = hyperplane.shortest_step(points, observed.gradient, rise, norm)

    far, own, clean = norms.norm_of(torch.cat([offset, *steps]), norm).chunk(3)
    nearest, best = update_nearest(x, far, observed.fooled, state.nearest, state.best)
    gained = observed.fooled & (far < WORTH * state.nearest)
    own, clean = own.clamp_min(TINY), clean.clamp_min(TINY)
    alpha = per_row((own / (own + clean)).clamp_max(params.alpha_max), x)
    from_start, from_clean = points + params.eta * steps
    ahead = (1 - alpha) * from_start + alpha * from_clean
    return State(torch.where(per_row(gained, x), pulled, ahead).clamp(0, 1), nearest, best)


def aims(params: Params) -> int:
    """Return the number of wrong classes to attack towards.

    Args:
        params: Params of the attack.

    Returns:
        `targets`.
    """
    return params.targets


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
        "start": "clean" if params.restarts == 1 else "clean, then random",
        "steps": str(params.steps),
        "targets": str(params.targets),
        "restarts": str(params.restarts),
        "alpha_max": f"{params.alpha_max:g}",
        "eta": f"{params.eta:g}",
        "beta": f"{params.beta:g}",
        "loss": params.loss,
        "projection": "nearest point of hyperplane and box",
    }


ATTACK = IterativeAttack(
    summary="least distance: onto the linearised boundary to each of the likeliest wrong classes",
    source="Croce and Hein 2020",
    params=Params,
    norms=("linf", "l2", "l1"),
    goals=("untargeted",),
    budget="minimum",
    rule=Rule(init=init, respond=respond, result=best_image, seeks=True, aims=aims),
    traits=traits,
)
