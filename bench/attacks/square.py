"""Square Attack: random search over square windows by the model's scores, without a gradient.

A proposal differs from the best image so far in a window, whose side falls as the queries go by; it
becomes the best if it comes nearer to the goal. linf: from vertical stripes of +-eps, a window is
set to x + eps or x - eps, by a sign for each channel. l2 and l1: from a tiling of hills beside
valleys (eta), one more of them is added to what a window holds, which takes over the length of a
second window.
Source: Andriushchenko et al. 2020, algorithms 1 to 3, https://arxiv.org/abs/1912.00049; l1 Croce
and Hein 2021, https://arxiv.org/abs/2103.01208; start, schedule and eta as in the code of
AutoAttack, https://github.com/fra31/auto-attack, that runs it with these defaults.
Differs from the paper: targeted, too, the best other class's lead is to fall, unless loss is
"cross-entropy".
Differs from that code: places, signs and turns are each example's own, not the batch's; a window
may touch the lower and the right edge; the start counts as a query; once the goal is reached (and
the attack goes on) the loss decides among images that reach it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from annotated_types import Gt, Le
from torch import Tensor

from bench.attacks.square_windows import (
    HALVED_AFTER,
    POWER,
    Tables,
    by_channel,
    draw_signs,
    locate_windows,
    make_tables,
    make_tile,
    place_eta,
    window_masks,
)
from bench.core.contracts.attack import IterativeAttack
from bench.core.contracts.parameters import Count
from bench.core.contracts.rule import AttackBatch, Rule, StepInput
from bench.core.contracts.types import Loss, Norm
from bench.core.rng import Noise, hash_uniform
from bench.engine.functional.norms import norm_of, per_row
from bench.engine.functional.projections import (
    Box,
    NoBox,
    make_box,
    project_l1_box,
    round_into_ball,
)

TINY = 1e-12
"""Keeps the direction of a window of zeros finite."""


@dataclass(frozen=True, kw_only=True)
class Params:
    """Parameters of the attack."""

    steps: Count = 5000
    """Queries of each restart, the first for the start."""
    p: Annotated[float, Gt(0), Le(1)] = 0.8
    """Share of the image that the first windows cover."""
    restarts: Count = 1
    loss: Loss = "logit-difference"


class State(NamedTuple):
    """State of the rows."""

    x: Tensor
    """The proposal."""
    best: Tensor
    """Image nearest to the goal; the start before the first pass."""
    loss: Tensor
    """Loss at `best`, (n,); minus infinity before the first pass."""
    fooled: Tensor
    """Whether `best` reached the goal, (n,), bool."""
    key: Tensor
    """Of the row's draws, (n,), int64."""
    box: Box | NoBox


def init(batch: AttackBatch, noise: Noise, params: Params, norm: Norm) -> State:
    """Start with stripes (linf) or tiles (l2, l1).

    Args:
        batch: Images, labels and radii of the rows.
        noise: Random numbers keyed by example and restart.
        params: Params of the attack.
        norm: Norm of the ball.

    Returns:
        State at step 0.
    """
    start = start_stripes(batch, noise) if norm == "linf" else start_tiles(batch, noise, norm)
    never = torch.zeros_like(batch.y, dtype=torch.bool)
    loss, box = torch.full_like(batch.eps, -torch.inf), make_box(batch.x, batch.eps, norm)
    return State(start, start, loss, never, noise.keys(start), box)


def respond(
    state: State, observed: StepInput, batch: AttackBatch, params: Params, norm: Norm
) -> State:
    """Accept the proposal if it is nearer to the goal, and make the next one.

    Args:
        state: State of the rows.
        observed: Forward and backward pass at the iterates.
        batch: Images, labels and radii of the rows.
        params: Params of the attack.
        norm: Norm of the ball.

    Returns:
        State after the step.
    """
    rises = (observed.loss > state.loss) & (observed.fooled == state.fooled)
    better = rises | torch.gt(observed.fooled, state.fooled)
    # With a weight of 0 or 1 lerp returns one or the other to the bit, several times sooner than
    # torch.where.
    best = torch.lerp(state.best, state.x, per_row(better, state.x).to(state.x.dtype))
    loss = torch.where(better, observed.loss, state.loss)
    x = propose(best, state.key, state.box, batch, params, norm)
    # A proposal that is the first to reach the goal is always better.
    fooled = state.fooled | observed.fooled
    return state._replace(x=x, best=best, loss=loss, fooled=fooled)


def result(state: State) -> Tensor:
    """Return the best proposal.

    Args:
        state: State of the rows.

    Returns:
        Images, (n, c, h, w).
    """
    return state.best


def propose(
    best: Tensor, key: Tensor, box: Box | NoBox, batch: AttackBatch, params: Params, norm: Norm
) -> Tensor:
    """Propose images that differ from the best ones in a window.

    Args:
        best: Best images so far, (n, c, h, w).
        key: Key of each row's random numbers, (n,), int64.
        box: Bounds of ball and box in linf.
        batch: Images, labels and radii of the rows.
        params: Params of the attack.
        norm: Norm of the ball.

    Returns:
        Proposals in ball and box, (n, c, h, w).
    """
    known = make_tables(params.p, *best.shape[2:], norm, best.dtype, best.device)
    halvings = known.halvings.index_select(0, batch.k.clamp_max(len(known.halvings) - 1))
    if isinstance(box, Box):
        return change_one_window(best, key, box, batch, known, halvings)
    return change_two_windows(best, key, batch, known, halvings, norm)


# ------------------------------------------------------------------------------------------- linf


def start_stripes(batch: AttackBatch, noise: Noise) -> Tensor:
    """Return x +- eps by a sign for each column of each channel, in the box.

    Args:
        batch: Images, labels and radii of the rows.
        noise: Random numbers keyed by example and restart.

    Returns:
        Images, (n, c, h, w).
    """
    radius = per_row(batch.eps, batch.x)
    down = noise.uniform(batch.x[:, :, :1]) < 0
    return (batch.x + torch.where(down, -radius, radius)).clamp(0, 1)


def change_one_window(
    best: Tensor, key: Tensor, box: Box, batch: AttackBatch, known: Tables, halvings: Tensor
) -> Tensor:
    """Set a window to x + eps or x - eps, by a sign for each channel (linf).

    Args:
        best: Best images so far, (n, c, h, w).
        key: Key of each row's random numbers, (n,), int64.
        box: Bounds of ball and box.
        batch: Images, labels and radii of the rows.
        known: Tables of the windows.
        halvings: Halvings of p so far, (n,).

    Returns:
        Proposals, (n, c, h, w).
    """
    side = known.side.index_select(0, halvings)
    u = hash_uniform(key, batch.k, 2 + best.shape[1])
    rows, columns = window_masks(locate_windows(u[:, None, :2], side, known), side, best)
    far = 2 * by_channel(draw_signs(u[:, 2:], best))  # more than the box is wide
    moved = torch.addcmul(best, far * rows[..., None], columns[:, :, None])
    return torch.clamp(moved, box.lowest, box.highest)


# -------------------------------------------------------------------------------------- l2 and l1


def start_tiles(batch: AttackBatch, noise: Noise, norm: Norm) -> Tensor:
    """Return x plus five rows of five etas (or as many as fit), turned and signed at random.

    The start is in the box and, in l2, exactly at a distance of eps before clipping.

    Args:
        batch: Images, labels and radii of the rows.
        noise: Random numbers keyed by example and restart.
        norm: l2 or l1.

    Returns:
        Images, (n, c, h, w).
    """
    n, channels, height, width = batch.x.shape
    side = max(min(height, width) // 5, 1)
    down, across = height // side, width // side
    drawn = noise.uniform(batch.x.new_empty(n, channels + 1, down, across)) < 0
    drawn = by_channel(drawn)  # (n, c + 1, down, across, 1, 1)
    shape = make_tile(side, norm, batch.x.dtype, batch.x.device)
    tile = torch.where(drawn[:, :1], shape.T, shape)
    tile = torch.where(drawn[:, 1:], -tile, tile)  # (n, c, down, across, side, side)
    tiled = tile.transpose(3, 4).reshape(n, channels, down * side, across * side)
    delta = torch.zeros_like(batch.x)
    top, left = (height - down * side) // 2, (width - across * side) // 2
    delta[:, :, top : top + down * side, left : left + across * side] = tiled
    if norm == "l1":
        return project_l1_box(batch.x + delta, batch.x, batch.eps)
    start = (batch.x + delta * per_row(batch.eps / norm_of(delta, norm), delta)).clamp(0, 1)
    return round_into_ball(start, batch.x, batch.eps, norm)


def change_two_windows(
    best: Tensor, key: Tensor, batch: AttackBatch, known: Tables, halvings: Tensor, norm: Norm
) -> Tensor:
    """Move the length of two windows, and what is left of eps, into the first of them.

    With delta the change that was there, the first gets sign * eta + delta / |delta| scaled to this
    length, channel by channel; the second gets x. In l2 the squared lengths so add up to eps^2, or
    to less where the box cuts or eta cancels delta; in l1 more is given, and projected.

    Args:
        best: Best images so far, (n, c, h, w).
        key: Key of each row's random numbers, (n,), int64.
        batch: Images, labels and radii of the rows.
        known: Tables of the windows.
        halvings: Halvings of p so far, (n,).
        norm: l2 or l1.

    Returns:
        Proposals, (n, c, h, w).
    """
    side, channels = known.side.index_select(0, halvings), best.shape[1]
    u = hash_uniform(key, batch.k, 5 + channels)
    at = locate_windows(u[:, :4].view(-1, 2, 2), side, known)
    rows, columns = window_masks(at, side, best)  # (n, 2, h), (n, 2, w)
    shape = place_eta(known.eta, 2 * halvings + (u[:, 4] < 0.5), at[:, 0], best)
    sign, squared = draw_signs(u[:, 5:], best), norm == "l2"

    delta = best - batch.x
    whole, first, second, common = rectangle_sums(
        delta.square() if squared else delta.abs(),
        *(
            torch.cat([torch.ones_like(each[:, :1]), each, each[:, :1] * each[:, 1:]], 1)
            for each in (rows, columns)
        ),
    )
    budget = batch.eps.square() if squared else batch.eps
    left = (budget - whole.sum(1)).clamp_min(0) / channels
    wanted = (first + second - common).clamp_min(0) + left[:, None]  # (n, c)
    wanted, first = (wanted.sqrt(), first.sqrt()) if squared else (wanted * channels, first)

    window, second_window = (rows[..., None] * columns[:, :, None]).split(1, 1)  # (n, 1, h, w)
    there = delta * window
    # sign * (eta + sign * delta / |delta|), so that the signs multiply (n, c) numbers only.
    mixed = shape.addcmul(there, by_channel(sign / (first + TINY)))
    scale = sign * wanted / (torch.linalg.vector_norm(mixed, POWER[norm], (2, 3)) + TINY)
    rest = delta - there
    rest = rest.addcmul(rest, second_window, value=-1)
    x = (batch.x + rest).addcmul_(mixed, by_channel(scale))
    if squared:
        return round_into_ball(x.clamp_(0, 1), batch.x, batch.eps, norm)
    return project_l1_box(x, batch.x, batch.eps)


def rectangle_sums(values: Tensor, rows: Tensor, columns: Tensor) -> Sequence[Tensor]:
    """Sum values over rectangles.

    Args:
        values: (n, c, h, w).
        rows: Masks of the rows, (n, r, h).
        columns: Masks of the columns, (n, r, w).

    Returns:
        r tensors (n, c).
    """
    return ((rows[:, None] @ values) * columns[:, None]).sum(3).unbind(2)


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
        "start": "stripes" if norm == "linf" else "tiles",
        "steps": str(params.steps),
        "p": f"{params.p:g}, halved after {', '.join(map(str, HALVED_AFTER))}",
        "loss": params.loss,
        "restarts": str(params.restarts),
    }


ATTACK = IterativeAttack(
    summary="random search over square windows, by the model's scores alone",
    source="Andriushchenko et al. 2020",
    params=Params,
    norms=("linf", "l2", "l1"),
    needs="scores",
    stochastic=True,
    anytime=True,
    rule=Rule(init=init, respond=respond, result=result),
    traits=traits,
)
