"""APGD: projected gradient ascent with momentum, whose step size finds itself.

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
as in their code, and the row stops there if the curve does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge, Le
from torch import Tensor

from bench.attacks.common import PROJECTION
from bench.core.contracts.attack import Attack
from bench.core.contracts.parameters import Count
from bench.core.contracts.rule import AttackBatch, Rule, StepInput
from bench.core.contracts.types import Loss, Norm
from bench.core.rng import Noise
from bench.engine.functional import norms, projections
from bench.engine.functional.norms import per_row

MOMENTUM = 0.75
"""The share of the new step; the last one has the rest."""
CHECKPOINTS = (22, 41, 57, 70, 80, 87, 93, 99)
"""In percent of the steps: p_1 = 22, then 19 later, and each time 3 less, 6 at the least."""
SECOND, THIRD = 30, 60
"""Where, in percent of the steps, the second and the third of the l1 balls begin."""
SPARSER, SLOWER, SLOWEST = 1.5, 1.5, 10
"""What l1 divides the number of entries and eta by at a checkpoint, and eps for the least eta."""


@dataclass(frozen=True, kw_only=True)
class Params:
    steps: Count = 100
    restarts: Count = 1
    rho: Annotated[float, Ge(0), Le(1)] = 0.75
    """The share of steps that must raise the loss for the step size to stay; not in l1."""
    loss: Loss = "cross-entropy"


class Point(NamedTuple):
    """Where a row saw its greatest loss."""

    x: Tensor
    gradient: Tensor
    loss: Tensor


class Pace(NamedTuple):
    """The step size of linf and l2, and what decides at the next checkpoint; each (n,)."""

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
    """The step size of l1 and what decides on it; each (n,)."""

    eta: Tensor
    entries: Tensor
    """Entries of the best point that were changed, at the last checkpoint."""


class State(NamedTuple):
    x: Tensor
    previous: Tensor
    """The iterate before x, for the momentum."""
    best: Point
    pace: Pace | Sparsity
    found: Tensor
    """The latest iterate that was a success."""
    success: Tensor
    """Whether there is one, (n,), bool."""


def init(items: AttackBatch, noise: Noise, params: Params, norm: Norm) -> State:
    x, none = _start(items, noise, params, norm), torch.full_like(items.eps, -torch.inf)
    pace: Pace | Sparsity = Sparsity(items.eps, none)
    if norm != "l1":
        zero = torch.zeros_like(items.k)
        pace = Pace(2 * items.eps, -none, zero, zero, none, torch.ones_like(zero, dtype=torch.bool))
    best = Point(x, torch.zeros_like(x), none)
    return State(x, x, best, pace, x, torch.zeros_like(items.k, dtype=torch.bool))


def _start(items: AttackBatch, noise: Noise, params: Params, norm: Norm) -> Tensor:
    """linf: a uniform draw whose largest entry is eps; l2: a random direction of length eps; l1: a
    normal draw, projected. Then the box."""
    if norm == "l1":
        radius = _radius(items.k, items, params)
        return projections.project(items.x + noise.normal(items.x), items.x, radius, norm)
    draw = noise.uniform(items.x) if norm == "linf" else noise.normal(items.x)
    scale = items.eps / norms.norm_of(draw, norm)
    return projections.project(items.x + per_row(scale, draw) * draw, items.x, items.eps, norm)


def respond(state: State, seen: StepInput, items: AttackBatch, params: Params, norm: Norm) -> State:
    found = torch.where(per_row(seen.fooled, state.x), state.x, state.found)
    state = state._replace(found=found, success=state.success | seen.fooled)
    if norm == "l1":
        return _sparse_step(state, seen, items, params)
    return _step(state, seen, items, params, norm)


def result(state: State) -> Tensor:
    return torch.where(per_row(state.success, state.x), state.found, state.x)


def within(items: AttackBatch, params: Params, norm: Norm) -> Tensor:
    """Not in the first two of the l1 balls."""
    return (norm != "l1") | (_radius(items.k, items, params) == items.eps)


def _update_best(best: Point, x: Tensor, seen: StepInput) -> Point:
    """The point of the greater loss, for each row."""
    better = seen.loss > best.loss
    x, gradient = (
        torch.where(per_row(better, x), new, old)
        for new, old in ((x, best.x), (seen.gradient, best.gradient))
    )
    return Point(x, gradient, torch.where(better, seen.loss, best.loss))


# ------------------------------------------------------------------------------------ linf and l2


def _step(state: State, seen: StepInput, items: AttackBatch, params: Params, norm: Norm) -> State:
    assert isinstance(state.pace, Pace)
    best = _update_best(state.best, state.x, seen)
    pace, back = _update_pace(state.pace, best.loss, seen.loss, items.k, params)
    x = torch.where(per_row(back, state.x), best.x, state.x)
    gradient = torch.where(per_row(back, x), best.gradient, seen.gradient)
    ahead = x + per_row(pace.eta, x) * projections.steepest_direction(gradient, norm)
    ahead = projections.project(ahead, items.x, items.eps, norm)
    mixed = x + MOMENTUM * (ahead - x) + (1 - MOMENTUM) * (x - state.previous)
    mixed = projections.project(mixed, items.x, items.eps, norm)
    after = torch.where(per_row(items.k == 0, x), ahead, mixed)
    return state._replace(x=after, previous=x, best=best, pace=pace)


def _update_pace(
    pace: Pace, best: Tensor, loss: Tensor, k: Tensor, params: Params
) -> tuple[Pace, Tensor]:
    """The pace after a look at step `k`, and which rows go back to their best point."""
    rises = pace.rises + (loss > pace.loss)
    marks = (-(-share * params.steps // 100) for share in CHECKPOINTS)  # rounded up
    at = reduce(torch.logical_or, (k == mark for mark in marks))
    few = rises <= params.rho * (k - pace.checked)  # condition 1 of the paper
    stuck = ~pace.halved & (best <= pace.best)  # condition 2
    halve = at & (few | stuck)
    after = Pace(
        eta=torch.where(halve, pace.eta / 2, pace.eta),
        loss=loss,
        rises=rises * ~at,
        checked=torch.where(at, k, pace.checked),
        best=torch.where(at, best, pace.best),
        halved=torch.where(at, halve, pace.halved),
    )
    return after, halve


# --------------------------------------------------------------------------------------------- l1


def _sparse_step(state: State, seen: StepInput, items: AttackBatch, params: Params) -> State:
    assert isinstance(state.pace, Sparsity)
    radius, following = (_radius(k, items, params) for k in (items.k, items.k + 1))
    since = items.k - _begin(items.k, params)
    forgotten = torch.where(since == 0, -torch.inf, state.best.loss)  # another ball, another best
    best = _update_best(state.best._replace(loss=forgotten), state.x, seen)
    pace, back = _update_sparsity(state.pace, best.x, since, radius, items, params)
    x = torch.where(per_row(back, state.x), best.x, state.x)
    gradient = torch.where(per_row(back, x), best.gradient, seen.gradient)
    ahead = x + per_row(pace.eta, x) * _sparse_signs(gradient, pace.entries / SPARSER)
    ahead = torch.where(per_row(following < radius, x), best.x, ahead)
    after = projections.project(ahead, items.x, following, "l1")
    return state._replace(x=after, previous=x, best=best, pace=pace)


def _begin(k: Tensor, params: Params) -> Tensor:
    """The step at which the ball of step `k` was entered, (n,)."""
    second, third = (share * params.steps // 100 for share in (SECOND, THIRD))
    return second * (k >= second) + (third - second) * (k >= third)


def _radius(k: Tensor, items: AttackBatch, params: Params) -> Tensor:
    """The radius of the ball of step `k`: 3 eps, then 2 eps, then eps, (n,)."""
    second, third = (share * params.steps // 100 for share in (SECOND, THIRD))
    return items.eps * (3 - (k >= second).to(items.eps) - (k >= third).to(items.eps))


def _update_sparsity(
    pace: Sparsity, best: Tensor, since: Tensor, radius: Tensor, items: AttackBatch, params: Params
) -> tuple[Sparsity, Tensor]:
    """The step size and sparsity after a look, `since` steps into a ball, and which rows go back
    to their best point."""
    changed = norms.norm_of(best - items.x, "l0")
    begins = since == 0
    at = ~begins & (since % max(params.steps // 75, 1) == 0)  # 4 % of a ball's steps
    fewer = at & (changed < 0.95 * pace.entries)
    slower = torch.maximum(pace.eta / SLOWER, radius / SLOWEST)
    eta = torch.where(begins | fewer, radius, torch.where(at, slower, pace.eta))
    return Sparsity(eta, torch.where(begins | at, changed, pace.entries)), fewer


def _sparse_signs(gradient: Tensor, entries: Tensor) -> Tensor:
    """The signs of the `entries` (n,), rounded up, largest entries of each row, over their number:
    a direction of l1 norm 1."""
    flat = gradient.flatten(1)
    size = flat.abs()
    last = entries.ceil().long().clamp(1, flat.shape[1])[:, None] - 1
    least = size.sort(dim=1, descending=True).values.gather(1, last)
    signs = torch.where(size >= least, flat.sign(), torch.zeros_like(flat))
    return (signs / signs.abs().sum(1, keepdim=True).clamp_min(1)).view_as(gradient)


def traits(params: Params, norm: Norm, eps: float) -> Mapping[str, str]:
    sphere = "random, scaled onto the ball's surface"
    return {
        "start": "a normal draw, projected" if norm == "l1" else sphere,
        "steps": str(params.steps),
        "loss": params.loss,
        "restarts": str(params.restarts),
        "projection": PROJECTION[norm],
    }


ATTACK = Attack(
    summary="projected gradient ascent with momentum, whose step size finds itself",
    source="Croce and Hein 2020; l1 Croce and Hein 2021",
    params=Params,
    norms=("linf", "l2", "l1"),
    stochastic=True,
    rule=Rule(init=init, respond=respond, result=result, within=within),
    traits=traits,
)
