"""HopSkipJump: estimate the normal of the decision boundary from labels, and move along it.

From an adversarial image x_t on the boundary, B_t = B_0 sqrt(t) labels at x_t + delta u_b, u_b
random directions of length 1, estimate the normal v, the mean of (phi_b - mean phi) u_b, where
phi_b is 1 for an adversarial image and -1 otherwise. The step x_t + xi v starts at xi = ||x_t - x||
/ sqrt(t), and xi is halved until the image is adversarial. A binary search between it and x finds
x_{t+1}. l2: gaussian directions and the segment to x; linf: uniform directions, the signs of v, and
the ball around x.
Source: Chen, Jordan and Wainwright 2020, algorithms 1 and 2, https://arxiv.org/abs/1904.02144
Differs from the paper: the start is the first of a series of random images that is misclassified
(`common.draw_start`), not uniform noise alone; theta, the tolerance of the binary search, is
gamma / sqrt(d), not 1 / (d sqrt(d)), and B_0 is 50, not 100, which take fewer queries; a step that
was halved 20 times is given up and the normal estimated again.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from annotated_types import Gt
from torch import Tensor

from bench.attacks.common import best_image, draw_start, point_between, update_nearest
from bench.core.contracts.attack import IterativeAttack
from bench.core.contracts.parameters import Count
from bench.core.contracts.rule import AttackBatch, Rule, StepInput
from bench.core.contracts.types import Loss, Norm
from bench.core.rng import Noise, hash_normal, hash_uniform
from bench.engine.functional import norms
from bench.engine.functional.norms import per_row

START, SEARCH, ESTIMATE, STEP = range(4)
"""What the query of a row is for: a start, the binary search, the normal, the step along it."""
FIRST_DELTA = 0.1
"""Length of the first directions, as in the authors' code, in pixels of [0, 1]."""
MOST_HALVINGS = 20
"""Of one step."""


@dataclass(frozen=True, kw_only=True)
class Params:
    """Parameters of the attack."""

    steps: Count = 5000
    """Queries."""
    directions: Count = 50
    """Queries of the first estimate, B_0."""
    gamma: Annotated[float, Gt(0)] = 0.03
    """Tolerance of the binary search times sqrt(d)."""
    restarts: ClassVar[int] = 1
    loss: ClassVar[Loss] = "logit-difference"


class State(NamedTuple):
    """State of the rows."""

    x: Tensor
    """The query."""
    phase: Tensor
    """What it is for, (n,), int64."""
    boundary: Tensor
    """Adversarial image next to the boundary, (n, c, h, w)."""
    far: Tensor
    """Adversarial end of the binary search."""
    low: Tensor
    """Share of the way to `far` that is not adversarial, (n,)."""
    high: Tensor
    """Share that is, (n,)."""
    total: Tensor
    """Sum of the directions u_b, (n, c, h, w)."""
    signed: Tensor
    """Sum of phi_b u_b."""
    score: Tensor
    """Sum of phi_b, (n,)."""
    made: Tensor
    """Directions so far, or halvings of the step, (n,), int64."""
    normal: Tensor
    """Direction of the step, (n, c, h, w)."""
    t: Tensor
    """Number of the iteration, from 1, (n,), int64."""
    nearest: Tensor
    """Distance of the nearest adversarial query, (n,); infinite if there is none."""
    best: Tensor
    """That image; x if there is none."""
    key: Tensor
    """Of the row's draws, (n,), int64."""


def init(batch: AttackBatch, noise: Noise, params: Params, norm: Norm) -> State:
    """Draw the first start.

    Args:
        batch: Images, labels and radii of the rows.
        noise: Random numbers keyed by example and restart.
        params: Params of the attack.
        norm: Norm of the distance.

    Returns:
        State at step 0.
    """
    x, number, key = batch.x, torch.zeros_like(batch.eps), noise.keys(batch.x)
    nothing, zero = torch.zeros_like(x), torch.zeros_like(batch.k)
    return State(
        x=draw_start(key, x, batch.k), phase=zero + START, boundary=x, far=x, low=number,
        high=number + 1, total=nothing, signed=nothing, score=number, made=zero, normal=nothing,
        t=zero + 1, nearest=number + torch.inf, best=x, key=key,
    )  # fmt: skip


def respond(
    state: State, observed: StepInput, batch: AttackBatch, params: Params, norm: Norm
) -> State:
    """Take the label into account and make the next query.

    Args:
        state: State of the rows.
        observed: Labels at the queries; scores are not read.
        batch: Images, labels and radii of the rows.
        params: Params of the attack.
        norm: Norm of the distance.

    Returns:
        State after the step.
    """
    fooled = observed.fooled
    far = norms.distance(state.x, batch.x, norm)
    nearest, best = update_nearest(state.x, far, fooled, state.nearest, state.best)
    state = state._replace(nearest=nearest, best=best)
    phase = state.phase
    state = _search(state, fooled, phase == SEARCH, batch, params, norm)
    state = _estimate(state, fooled, phase == ESTIMATE, batch, params, norm)
    state = _step(state, fooled, phase == STEP)
    start = (phase == START) & fooled
    ends = start | ((phase == STEP) & fooled)
    return _query(_open_search(state, ends, start), batch._replace(k=batch.k + 1), params, norm)


def _open_search(state: State, ends: Tensor, start: Tensor) -> State:
    """Search between x and the present query where it `ends` a phase with an adversarial image."""
    return state._replace(
        phase=torch.where(ends, SEARCH, state.phase),
        far=torch.where(per_row(ends, state.x), state.x, state.far),
        low=torch.where(ends, 0.0, state.low),
        high=torch.where(ends, 1.0, state.high),
        t=state.t + (ends & ~start),
    )


def _search(
    state: State, fooled: Tensor, at: Tensor, batch: AttackBatch, params: Params, norm: Norm
) -> State:
    """Halve the interval of the binary search; when it is short, start to estimate the normal."""
    middle = (state.low + state.high) / 2
    high = torch.where(at & fooled, middle, state.high)
    low = torch.where(at & ~fooled, middle, state.low)
    done = at & (high - low <= params.gamma / math.sqrt(batch.x[0].numel()))
    boundary = point_between(batch.x, state.far, high, norm)
    return _open_estimate(
        state._replace(
            low=low,
            high=high,
            boundary=torch.where(per_row(done, boundary), boundary, state.boundary),
        ),
        done,
    )


def _open_estimate(state: State, at: Tensor) -> State:
    """Forget the directions and the halvings of the iteration before."""
    here = per_row(at, state.x)
    return state._replace(
        phase=torch.where(at, ESTIMATE, state.phase),
        total=torch.where(here, 0.0, state.total),
        signed=torch.where(here, 0.0, state.signed),
        score=torch.where(at, 0.0, state.score),
        made=torch.where(at, 0, state.made),
    )


def _estimate(
    state: State, fooled: Tensor, at: Tensor, batch: AttackBatch, params: Params, norm: Norm
) -> State:
    """Add a direction to the estimate; when there are enough, take it as the normal."""
    phi = torch.where(fooled, 1.0, -1.0).to(state.x.dtype) * at
    # The direction as the box has left it, in units of delta, whose value the signs ignore.
    direction = (state.x - state.boundary) * per_row(at, state.x)
    total, signed = state.total + direction, state.signed + direction * per_row(phi, state.x)
    score, made = state.score + phi, state.made + at
    done = at & (made >= (params.directions * state.t.double().sqrt()).long())
    mean = score / made.clamp_min(1)
    # All labels alike leave no baseline to subtract.
    baseline = torch.where(mean.abs() < 1, mean, 0.0)
    normal = signed - per_row(baseline, total) * total
    if norm == "linf":
        normal = normal.sign()
    else:
        length = norms.norm_of(normal, "l2").clamp_min(norms.smallest_normal(normal))
        normal = normal / per_row(length, normal)
    return state._replace(
        phase=torch.where(done, STEP, state.phase),
        total=total,
        signed=signed,
        score=score,
        made=torch.where(done, 0, made),
        normal=torch.where(per_row(done, normal), normal, state.normal),
    )


def _step(state: State, fooled: Tensor, at: Tensor) -> State:
    """Halve a step that left the adversarial region, or give it up."""
    made = state.made + (at & ~fooled)
    over = at & ~fooled & (made > MOST_HALVINGS)
    return _open_estimate(state._replace(made=made, t=state.t + over), over)


def _query(state: State, batch: AttackBatch, params: Params, norm: Norm) -> State:
    """Make the next query of each row by its phase."""
    x, boundary = batch.x, state.boundary
    d = x[0].numel()
    draws = (hash_normal if norm == "l2" else hash_uniform)(state.key, batch.k, d)
    u = draws.to(x.dtype).view_as(x) if norm == "l2" else 2 * draws.to(x.dtype).view_as(x) - 1
    u = u / per_row(norms.norm_of(u, "l2"), u)
    far = norms.distance(boundary, x, norm)
    theta = params.gamma / math.sqrt(d)
    delta = torch.where(state.t == 1, FIRST_DELTA, far * theta * (d if norm == "linf" else d**0.5))
    length = far / state.t.to(far.dtype).sqrt() / 2.0 ** state.made.to(far.dtype)
    around = (boundary + per_row(delta, x) * u).clamp(0, 1)
    along = (boundary + per_row(length, x) * state.normal).clamp(0, 1)
    between = point_between(x, state.far, (state.low + state.high) / 2, norm)
    phase = per_row(state.phase, x)
    chosen = torch.where(phase == START, draw_start(state.key, x, batch.k), between)
    chosen = torch.where(phase == ESTIMATE, around, chosen)
    return state._replace(x=torch.where(phase == STEP, along, chosen))


def traits(params: Params, norm: Norm, eps: float) -> Mapping[str, str]:
    """Describe the attack for cross-checks.

    Args:
        params: Params of the attack.
        norm: Norm of the distance.
        eps: Radius of the ball.

    Returns:
        Properties by name.
    """
    return {
        "start": "random images",
        "steps": str(params.steps),
        "directions": f"{params.directions} sqrt(t)",
        "gamma": f"{params.gamma:g}",
    }


ATTACK = IterativeAttack(
    summary="least distance by labels alone: estimates the normal of the decision boundary",
    source="Chen, Jordan and Wainwright 2020",
    params=Params,
    norms=("l2", "linf"),
    goals=("untargeted",),  # targeted, it needs an image of the target class to start from
    needs="labels",
    stochastic=True,
    budget="minimum",
    anytime=True,
    rule=Rule(init=init, respond=respond, result=best_image, seeks=True),
    traits=traits,
)
