"""SurFree: go down circles between the image and the decision boundary, without estimating normals.

u is the direction from x to an adversarial image at distance d on the boundary, v a random
direction orthogonal to it. The image x + d cos(a) (cos(a) u + sin(a) v) is d cos(a) away from x, on
the circle whose diameter is from x to the boundary: where the boundary is a plane, one of the signs
of a brings it nearer. The angles a_max, -a_max, then 2/3 and 1/3 of them are tried; from the first
adversarial one, the largest angle is searched for. a_max grows by 2 % with each v that succeeds and
shrinks with each that fails. v has random signs or zeros in the lower half of each frequency, of
the size of the image's own.
Source: Maho, Furon and Le Merrer 2021, section 4, https://arxiv.org/abs/2011.12807
Differs from the paper: v is orthogonal to u alone, not to the last 100 directions, which would have
to be stored for each example; after a_max itself, a larger angle is tried once; the start is the
first of a series of random images that is misclassified (`common.draw_start`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, ClassVar, NamedTuple

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from bench.attacks.common import best_image, draw_start, point_between, update_nearest
from bench.core.contracts.attack import IterativeAttack
from bench.core.contracts.parameters import Count
from bench.core.contracts.rule import AttackBatch, Rule, StepInput
from bench.core.contracts.types import Loss, Norm
from bench.core.rng import Noise, hash_uniform
from bench.engine.functional import norms
from bench.engine.functional.norms import per_row

START, SEARCH, TRY, GROW, REFINE = range(5)
"""What the query of a row is for: a start, the search along the segment, an angle of a new v, an
angle beyond a_max, the search for the largest angle."""
ANGLES = 3
"""Sizes of angles that are tried for each v, each with both signs."""
FIRST_ANGLE = math.pi / 6
"""a_max at first."""
KAPPA = 0.02
"""By which share a_max changes."""
SEARCH_TOLERANCE = 0.01
"""Share of the segment at which the first search ends."""
GROWTH = 2.0
"""By which a_max is multiplied where it is adversarial itself."""


@dataclass(frozen=True, kw_only=True)
class Params:
    """Parameters of the attack."""

    steps: Count = 5000
    """Queries."""
    refinements: Count = 5
    """Queries of each search for the largest angle."""
    frequencies: Annotated[float, Gt(0), Lt(1)] = 0.5
    """Share of the frequencies along each axis that v has, from the lowest."""
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
    low: Tensor
    """Share of the segment that is not adversarial; of the circle, the angle that is, (n,)."""
    high: Tensor
    """Share of the segment that is adversarial; of the circle, the angle that is not, (n,)."""
    v: Tensor
    """Direction of length 1, orthogonal to the boundary's, (n, c, h, w)."""
    made: Tensor
    """Angles of this v, or queries of its search, so far, (n,), int64."""
    sign: Tensor
    """Of the angle that is searched for, (n,)."""
    largest: Tensor
    """a_max, (n,)."""
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
    number, zero, key = torch.zeros_like(batch.eps), torch.zeros_like(batch.k), noise.keys(batch.x)
    return State(
        x=draw_start(key, batch.x, batch.k), phase=zero + START, boundary=batch.x,
        low=number, high=number + 1, v=torch.zeros_like(batch.x), made=zero, sign=number + 1,
        largest=number + FIRST_ANGLE, nearest=number + torch.inf, best=batch.x, key=key,
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
    fooled, phase, before = observed.fooled, state.phase, state
    far = norms.distance(state.x, batch.x, norm)
    nearest, best = update_nearest(state.x, far, fooled, state.nearest, state.best)
    state = state._replace(nearest=nearest, best=best)

    started = (phase == START) & fooled
    state = state._replace(
        phase=torch.where(started, SEARCH, state.phase),
        boundary=torch.where(per_row(started, state.x), state.x, state.boundary),
    )
    state, arrived = _search(state, fooled, phase == SEARCH, batch)
    state, failed = _try(state, fooled, phase == TRY)
    state = _grow(state, fooled, phase == GROW)
    state, refined = _refine(state, fooled, phase == REFINE, params)
    landed = _on_circle(before, batch, state.sign * state.low)
    boundary = torch.where(per_row(refined, state.x), landed, state.boundary)
    state = state._replace(
        boundary=boundary,
        largest=torch.where(refined, (1 + KAPPA) * state.largest, state.largest),
    )
    fresh = arrived | failed | refined
    batch = batch._replace(k=batch.k + 1)
    v = draw_direction(state.key, batch, boundary - batch.x, params.frequencies)
    state = state._replace(
        phase=torch.where(fresh, TRY, state.phase),
        made=torch.where(fresh, 0, state.made),
        v=torch.where(per_row(fresh, v), v, state.v),
        largest=state.largest.clamp_max(math.pi / 2),
    )
    return _query(state, batch, norm)


def _search(state: State, fooled: Tensor, at: Tensor, batch: AttackBatch) -> tuple[State, Tensor]:
    """Halve the interval on the segment; return where the boundary is reached, (n,), bool."""
    middle = (state.low + state.high) / 2
    high = torch.where(at & fooled, middle, state.high)
    low = torch.where(at & ~fooled, middle, state.low)
    done = at & (high - low <= SEARCH_TOLERANCE)
    boundary = point_between(batch.x, state.boundary, high, "l2")
    boundary = torch.where(per_row(done, boundary), boundary, state.boundary)
    return state._replace(low=low, high=high, boundary=boundary), done


def _angle(state: State) -> Tensor:
    """Return the angle of TRY by its number: both signs of a_max, then of smaller ones, (n,)."""
    size = state.largest * (1 - state.made.div(2, rounding_mode="floor") / ANGLES)
    return torch.where(state.made % 2 == 0, size, -size)


def _try(state: State, fooled: Tensor, at: Tensor) -> tuple[State, Tensor]:
    """Continue with an angle that is adversarial; return where none of v is, (n,), bool."""
    angle, won = _angle(state), at & fooled
    at_most = won & (state.made < 2)
    failed = at & ~fooled & (state.made + 1 >= 2 * ANGLES)
    # The next larger angle of this sign was tried before.
    beyond = torch.where(at_most, GROWTH * angle.abs(), angle.abs() + state.largest / ANGLES)
    return state._replace(
        phase=torch.where(won, torch.where(at_most, GROW, REFINE), state.phase),
        sign=torch.where(won, angle.sign(), state.sign),
        low=torch.where(won, angle.abs(), state.low),
        high=torch.where(won, beyond.clamp_max(math.pi / 2), state.high),
        made=torch.where(won, 0, state.made + (at & ~fooled)),
        largest=torch.where(failed, (1 - KAPPA) * state.largest, state.largest),
    ), failed


def _grow(state: State, fooled: Tensor, at: Tensor) -> State:
    """Search between the angle beyond a_max and a right angle, or between a_max and it."""
    won = at & fooled
    return state._replace(
        phase=torch.where(at, REFINE, state.phase),
        low=torch.where(won, state.high, state.low),
        high=torch.where(won, math.pi / 2, state.high),
    )


def _refine(state: State, fooled: Tensor, at: Tensor, params: Params) -> tuple[State, Tensor]:
    """Halve the interval of angles; return where the search has ended, (n,), bool."""
    middle = (state.low + state.high) / 2
    made = state.made + at
    return state._replace(
        low=torch.where(at & fooled, middle, state.low),
        high=torch.where(at & ~fooled, middle, state.high),
        made=made,
    ), at & (made >= params.refinements)


def _on_circle(state: State, batch: AttackBatch, angle: Tensor) -> Tensor:
    """Return the images at angles (n,) of the circles, in the box."""
    toward = state.boundary - batch.x
    d = norms.norm_of(toward, "l2")
    cos, sin = angle.cos(), angle.sin()
    # d cos(a) cos(a) u + d cos(a) sin(a) v
    moved = per_row(cos * cos, toward) * toward + per_row(d * cos * sin, toward) * state.v
    return (batch.x + moved).clamp(0, 1)


def _query(state: State, batch: AttackBatch, norm: Norm) -> State:
    """Make the next query of each row by its phase."""
    phase, middle = state.phase, (state.low + state.high) / 2
    angle = torch.where(phase == GROW, state.sign * state.high, state.sign * middle)
    angle = torch.where(phase == TRY, _angle(state), angle)
    x = _on_circle(state, batch, angle)
    between = point_between(batch.x, state.boundary, middle, norm)
    x = torch.where(per_row(phase == SEARCH, x), between, x)
    return state._replace(
        x=torch.where(per_row(phase == START, x), draw_start(state.key, batch.x, batch.k), x)
    )


# ------------------------------------------------------------------------------------- directions


def draw_direction(key: Tensor, batch: AttackBatch, u: Tensor, frequencies: float) -> Tensor:
    """Draw directions of low frequencies, orthogonal to `u`.

    Source: Maho et al. 2021, section 4.4; the coefficients are those of the authors' code, -1, 0 or
    1 times the hyperbolic tangent of the image's own.

    Args:
        key: Key of each row's random numbers, (n,), int64.
        batch: Images and numbers of steps of the rows.
        u: Directions of any length, (n, c, h, w).
        frequencies: Share of the frequencies along each axis, from the lowest.

    Returns:
        Directions of length 1, or 0 where u leaves no other, (n, c, h, w).
    """
    x = batch.x
    down, across = (make_cosines(size, x.dtype, x.device) for size in x.shape[2:])
    draws = hash_uniform(key, batch.k, x[0].numel()).to(x.dtype).view_as(x)
    size = (down @ x @ across.T).abs().tanh().clamp_min(1e-3)
    coefficients = ((3 * draws).floor() - 1) * size
    for axis in (2, 3):
        most = math.ceil(frequencies * x.shape[axis])
        coefficients.narrow(axis, most, x.shape[axis] - most).zero_()
    v = down.T @ coefficients @ across
    squared = u.square().flatten(1).sum(1).clamp_min(norms.smallest_normal(u))
    v = v - per_row((u * v).flatten(1).sum(1) / squared, u) * u
    return v / per_row(norms.norm_of(v, "l2").clamp_min(norms.smallest_normal(v)), v)


@cache
def make_cosines(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Build the orthonormal matrix of the discrete cosine transform of type II.

    Source: Ahmed, Natarajan and Rao 1974, equation 6, https://doi.org/10.1109/T-C.1974.223784

    Args:
        size: Number of entries.
        dtype: Dtype of the images.
        device: Device of the images.

    Returns:
        Matrix (size, size); a row for each frequency, from the lowest.
    """
    k, at = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size) + 0.5
    matrix = (math.pi / size * k * at).cos() * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.to(device, dtype)


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
        "refinements": str(params.refinements),
        "frequencies": f"{params.frequencies:g}",
    }


ATTACK = IterativeAttack(
    summary="least distance by labels alone: goes down circles along the decision boundary",
    source="Maho, Furon and Le Merrer 2021",
    params=Params,
    norms=("l2",),
    goals=("untargeted",),  # targeted, it needs an image of the target class to start from
    needs="labels",
    stochastic=True,
    budget="minimum",
    anytime=True,
    rule=Rule(init=init, respond=respond, result=best_image, seeks=True),
    traits=traits,
)
