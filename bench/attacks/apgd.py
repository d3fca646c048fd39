"""APGD: projected gradient ascent with momentum, whose step size adapts.

linf and l2: z = P(x_k + eta * v_k), v_k the steepest direction; x_{k+1} = P(x_k + 0.75 (z - x_k)
+ 0.25 (x_k - x_{k-1})), the first step without momentum. eta starts at 2 eps. At a checkpoint it
is halved, and the row goes back to the point of its greatest loss, if the loss rose in at most rho
of the steps since the last one, or if it neither was halved there nor has a greater loss now.
Source: Croce and Hein 2020, algorithm 1, https://arxiv.org/abs/2003.01690

l1: x_{k+1} = P(x_k + eta * s_k), s_k the signs of the gradient's largest entries, over their
number; P is the nearest point of ball and box. At a checkpoint the number of entries becomes that
of the best point's perturbation over 1.5. If the perturbation got sparser by a twentieth the row
goes back to its best point with eta = eps; else eta is divided by 1.5, down to eps / 10. The first
30 % of the steps are made in the ball of 3 eps, the next 30 % in that of 2 eps, each ending with
the projection of its best point onto the ball that follows.
Source: Croce and Hein 2021, section 3, https://arxiv.org/abs/2103.01208
Differs from the papers: in l1 the last step of a larger ball is that projection, so that all takes
as many gradients as there are steps; the first ball, too, begins with a 1.5th of its start's
entries, as in the authors' code, not with a fifth of all. An iterate that is a success is returned,
as in their code, and the row stops there under stop = "first-success".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge, Le
from torch import Tensor

from bench.attacks.common import PROJECTION
from bench.core.contracts.attack import IterativeAttack
from bench.core.contracts.parameters import Count
from bench.core.contracts.rule import AttackBatch, Rule, StepInput
from bench.core.contracts.types import Loss, Norm
from bench.core.rng import Noise
from bench.engine.functional import norms, projections
from bench.engine.functional.norms import per_row
from bench.engine.functional.projections import Box, NoBox

MOMENTUM = 0.75
"""The share of the new step; the last one has the rest."""
CHECKPOINTS = (22, 41, 57, 70, 80, 87, 93, 99)
"""In percent of the steps: p_1 = 22, then 19 later, and each time 3 less, 6 at the least."""
SECOND, THIRD = 30, 60
"""Where, in percent of the steps, the second and the third of the l1 balls begin."""
SPARSER, SLOWER, SLOWEST = 1.5, 1.5, 10
"""Divisors of l1: of the number of entries, of eta at a checkpoint, of eps for the least eta."""


@dataclass(frozen=True, kw_only=True)
class Params:
    """Parameters of the attack."""

    steps: Count = 100
    restarts: Count = 1
    rho: Annotated[float, Ge(0), Le(1)] = 0.75
    """The share of steps that must raise the loss for the step size to stay; not in l1."""
    loss: Loss = "cross-entropy"


class Point(NamedTuple):
    """The iterate of a row's greatest loss so far."""

    x: Tensor
    gradient: Tensor
    loss: Tensor


class Pace(NamedTuple):
    """Step size of linf and l2, and what decides at the next checkpoint; each (n,)."""

    eta: Tensor
    loss: Tensor
    """Of the iterate before."""
    rises: Tensor
    """Steps since the last checkpoint that raised the loss."""
    checked: Tensor
    """Step of the last checkpoint."""
    best: Tensor
    """The greatest loss at the last checkpoint."""
    halved: Tensor
    """Whether eta was halved there; as if so at the start."""


class Sparsity(NamedTuple):
    """Step size of l1 and what decides on it; each (n,)."""

    eta: Tensor
    entries: Tensor
    """Entries of the best point that were changed, at the last checkpoint."""


class State(NamedTuple):
    """State of the rows."""

    x: Tensor
    previous: Tensor
    """The iterate before x, for the momentum."""
    best: Point
    pace: Pace | Sparsity
    found: Tensor
    """The latest successful iterate."""
    success: Tensor
    """Whether there is one, (n,), bool."""
    box: Box | NoBox


def init(batch: AttackBatch, noise: Noise, params: Params, norm: Norm) -> State:
    """Start on the surface of the ball, in l1 at a projected normal draw.

    Args:
        batch: Images, labels and radii of the rows.
        noise: Random numbers keyed by example and restart.
        params: Params of the attack.
        norm: Norm of the ball.

    Returns:
        State at step 0.
    """
    x, none = _start(batch, noise, params, norm), torch.full_like(batch.eps, -torch.inf)
    pace: Pace | Sparsity = Sparsity(batch.eps, none)
    if norm != "l1":
        zero = torch.zeros_like(batch.k)
        pace = Pace(2 * batch.eps, -none, zero, zero, none, torch.ones_like(zero, dtype=torch.bool))
    best = Point(x, torch.zeros_like(x), none)
    never = torch.zeros_like(batch.k, dtype=torch.bool)
    return State(x, x, best, pace, x, never, projections.make_box(batch.x, batch.eps, norm))


def _start(batch: AttackBatch, noise: Noise, params: Params, norm: Norm) -> Tensor:
    """Draw the starting points, projected.

    linf: a uniform draw whose largest entry is eps. l2: a random direction of length eps. l1: a
    normal draw.
    """
    if norm == "l1":
        radius = _radius(batch.k, batch, params)
        return projections.project(batch.x + noise.normal(batch.x), batch.x, radius, norm)
    draw = noise.uniform(batch.x) if norm == "linf" else noise.normal(batch.x)
    scale = batch.eps / norms.norm_of(draw, norm)
    return projections.project(batch.x + per_row(scale, draw) * draw, batch.x, batch.eps, norm)


def respond(
    state: State, observed: StepInput, batch: AttackBatch, params: Params, norm: Norm
) -> State:
    """Adapt the step size and step with momentum, in l1 along sparse signs.

    Args:
        state: State of the rows.
        observed: Forward and backward pass at the iterates.
        batch: Images, labels and radii of the rows.
        params: Params of the attack.
        norm: Norm of the ball.

    Returns:
        State after the step.
    """
    found = torch.where(per_row(observed.fooled, state.x), state.x, state.found)
    state = state._replace(found=found, success=state.success | observed.fooled)
    if norm == "l1":
        return _sparse_step(state, observed, batch, params)
    return _step(state, observed, batch, params, norm)


def result(state: State) -> Tensor:
    """Return the latest successful iterate, or the last one if there is none.

    Args:
        state: State of the rows.

    Returns:
        Images, (n, c, h, w).
    """
    return torch.where(per_row(state.success, state.x), state.found, state.x)


def within(batch: AttackBatch, params: Params, norm: Norm) -> Tensor:
    """Return whether iterates are in their own ball: not in the first two of the l1 balls.

    Args:
        batch: Images, labels and radii of the rows.
        params: Params of the attack.
        norm: Norm of the ball.

    Returns:
        (n,), bool.
    """
    return (norm != "l1") | (_radius(batch.k, batch, params) == batch.eps)


def _update_best(best: Point, x: Tensor, observed: StepInput) -> Point:
    """Keep the point of the greater loss for each row."""
    better = observed.loss > best.loss
    x, gradient = (
        torch.where(per_row(better, x), new, old)
        for new, old in ((x, best.x), (observed.gradient, best.gradient))
    )
    return Point(x, gradient, torch.where(better, observed.loss, best.loss))


# ------------------------------------------------------------------------------------ linf and l2


def _step(
    state: State, observed: StepInput, batch: AttackBatch, params: Params, norm: Norm
) -> State:
    """Make the step of linf and l2: equations of algorithm 1, lines 7 and 8."""
    assert isinstance(state.pace, Pace)
    best = _update_best(state.best, state.x, observed)
    pace, back = _update_pace(state.pace, best.loss, observed.loss, batch.k, params)
    x = torch.where(per_row(back, state.x), best.x, state.x)
    gradient = torch.where(per_row(back, x), best.gradient, observed.gradient)
    ahead = projections.step_steepest(x, gradient, pace.eta, norm)
    ahead = projections.project_into(ahead, state.box, batch.x, batch.eps, norm)
    mixed = x + MOMENTUM * (ahead - x) + (1 - MOMENTUM) * (x - state.previous)
    mixed = projections.project_into(mixed, state.box, batch.x, batch.eps, norm)
    after = torch.where(per_row(batch.k == 0, x), ahead, mixed)
    return state._replace(x=after, previous=x, best=best, pace=pace)


def _update_pace(
    pace: Pace, best: Tensor, loss: Tensor, k: Tensor, params: Params
) -> tuple[Pace, Tensor]:
    """Update the pace after step `k`; also return which rows go back to their best point."""
    rises = pace.rises + (loss > pace.loss)
    at = _mark_checkpoints(params.steps, k.device).index_select(0, k)
    few = rises <= params.rho * (k - pace.checked)  # condition 1 of the paper
    stuck = torch.gt(best <= pace.best, pace.halved)  # condition 2: the first, not the second
    halve = at & (few | stuck)
    after = Pace(
        eta=torch.where(halve, pace.eta / 2, pace.eta),
        loss=loss,
        rises=rises.masked_fill(at, 0),
        checked=torch.where(at, k, pace.checked),
        best=torch.where(at, best, pace.best),
        halved=torch.where(at, halve, pace.halved),
    )
    return after, halve


@cache
def _mark_checkpoints(steps: int, device: torch.device) -> Tensor:
    """Mark the steps of the checkpoints, (steps + 1,), bool; on the device, once."""
    marked = torch.zeros(steps + 1, dtype=torch.bool)
    for share in CHECKPOINTS:
        marked[-(-share * steps // 100)] = True  # rounded up
    return marked.to(device)


# --------------------------------------------------------------------------------------------- l1


def _sparse_step(state: State, observed: StepInput, batch: AttackBatch, params: Params) -> State:
    """Make the step of l1."""
    assert isinstance(state.pace, Sparsity)
    radius, following = (_radius(k, batch, params) for k in (batch.k, batch.k + 1))
    since = batch.k - _begin(batch.k, params)
    forgotten = torch.where(since == 0, -torch.inf, state.best.loss)  # another ball, another best
    best = _update_best(state.best._replace(loss=forgotten), state.x, observed)
    pace, back = _update_sparsity(state.pace, best.x, since, radius, batch, params)
    x = torch.where(per_row(back, state.x), best.x, state.x)
    gradient = torch.where(per_row(back, x), best.gradient, observed.gradient)
    ahead = x + per_row(pace.eta, x) * _sparse_signs(gradient, pace.entries / SPARSER)
    ahead = torch.where(per_row(following < radius, x), best.x, ahead)
    after = projections.project(ahead, batch.x, following, "l1")
    return state._replace(x=after, previous=x, best=best, pace=pace)


def _begin(k: Tensor, params: Params) -> Tensor:
    """Return the step at which the ball of step `k` was entered, (n,)."""
    second, third = (share * params.steps // 100 for share in (SECOND, THIRD))
    return second * (k >= second) + (third - second) * (k >= third)


def _radius(k: Tensor, batch: AttackBatch, params: Params) -> Tensor:
    """Return the radius of the ball of step `k`: 3 eps, then 2 eps, then eps, (n,)."""
    second, third = (share * params.steps // 100 for share in (SECOND, THIRD))
    return batch.eps * (3 - (k >= second).to(batch.eps) - (k >= third).to(batch.eps))


def _update_sparsity(
    pace: Sparsity, best: Tensor, since: Tensor, radius: Tensor, batch: AttackBatch, params: Params
) -> tuple[Sparsity, Tensor]:
    """Update step size and sparsity, `since` steps into a ball; also return which rows go back."""
    changed = norms.norm_of(best - batch.x, "l0")
    begins = since == 0
    at = ~begins & (since % max(params.steps // 75, 1) == 0)  # 4 % of a ball's steps
    fewer = at & (changed < 0.95 * pace.entries)
    slower = torch.maximum(pace.eta / SLOWER, radius / SLOWEST)
    eta = torch.where(begins | fewer, radius, torch.where(at, slower, pace.eta))
    return Sparsity(eta, torch.where(begins | at, changed, pace.entries)), fewer


def _sparse_signs(gradient: Tensor, entries: Tensor) -> Tensor:
    """Return the signs of the `entries` largest entries of each row over their number.

    `entries` (n,) is rounded up; the result has l1 norm 1.
    """
    flat = gradient.flatten(1)
    size = flat.abs()
    last = entries.ceil().long().clamp(1, flat.shape[1])[:, None] - 1
    least = size.sort(dim=1, descending=True).values.gather(1, last)
    signs = torch.where(size >= least, flat.sign(), torch.zeros_like(flat))
    return (signs / signs.abs().sum(1, keepdim=True).clamp_min(1)).view_as(gradient)


def traits(params: Params, norm: Norm, eps: float) -> Mapping[str, str]:
    """Describe the attack for cross-checks.

    Args:
        params: Params of the attack.
        norm: Norm of the ball.
        eps: Radius of the ball.

    Returns:
        Properties by name.
    """
    sphere = "random, scaled onto the ball's surface"
    return {
        "start": "a normal draw, projected" if norm == "l1" else sphere,
        "steps": str(params.steps),
        "loss": params.loss,
        "restarts": str(params.restarts),
        "projection": PROJECTION[norm],
    }


ATTACK = IterativeAttack(
    summary="projected gradient ascent with momentum, whose step size finds itself",
    source="Croce and Hein 2020; l1 Croce and Hein 2021",
    params=Params,
    norms=("linf", "l2", "l1"),
    stochastic=True,
    rule=Rule(init=init, respond=respond, result=result, within=within),
    traits=traits,
)
