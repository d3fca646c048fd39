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

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, NamedTuple

import torch
from annotated_types import Gt, Le
from torch import Tensor

from bench.core.contracts.attack import Attack
from bench.core.contracts.parameters import Count
from bench.core.contracts.rule import AttackBatch, Rule, StepInput
from bench.core.contracts.types import Loss, Norm
from bench.core.rng import Noise, hash_uniform
from bench.engine.functional.norms import norm_of, per_row
from bench.engine.functional.projections import project_l1_box, round_into_ball

HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Proposals, counted from 0, after which the windows' area is halved, however many are made."""
POWER = {"l2": 2, "l1": 1}
"""What the norm raises a difference to before it adds."""
TINY = 1e-12
"""Keeps the direction of a window of zeros finite."""


@dataclass(frozen=True, kw_only=True)
class Params:
    steps: Count = 5000
    """Queries of each restart, the first for the start."""
    p: Annotated[float, Gt(0), Le(1)] = 0.8
    """Share of the image that the first windows cover."""
    restarts: Count = 1
    loss: Loss = "logit-difference"


class State(NamedTuple):
    x: Tensor
    """The proposal."""
    best: Tensor
    """What came nearest to the goal; the start as long as nothing was looked at."""
    loss: Tensor
    """Of `best`, (n,); minus infinity as long as nothing was looked at."""
    fooled: Tensor
    """Whether `best` reached the goal, (n,), bool."""
    key: Tensor
    """Of the row's draws, (n,), int64."""


def init(items: AttackBatch, noise: Noise, params: Params, norm: Norm) -> State:
    start = start_stripes(items, noise) if norm == "linf" else start_tiles(items, noise, norm)
    never = torch.zeros_like(items.y, dtype=torch.bool)
    return State(start, start, torch.full_like(items.eps, -torch.inf), never, noise.keys(start))


def respond(state: State, seen: StepInput, items: AttackBatch, params: Params, norm: Norm) -> State:
    rises = (seen.loss > state.loss) & (seen.fooled == state.fooled)
    better = rises | (seen.fooled & ~state.fooled)
    # With a weight of 0 or 1 lerp gives one or the other to the bit, several times sooner than
    # torch.where.
    best = torch.lerp(state.best, state.x, per_row(better, state.x).to(state.x.dtype))
    loss = torch.where(better, seen.loss, state.loss)
    x = propose(best, state.key, items, params, norm)
    return State(x, best, loss, state.fooled | better & seen.fooled, state.key)


def result(state: State) -> Tensor:
    return state.best


def propose(best: Tensor, key: Tensor, items: AttackBatch, params: Params, norm: Norm) -> Tensor:
    known = make_tables(params.p, *best.shape[2:], norm, best.dtype, best.device)
    halvings = known.halvings.index_select(0, items.k.clamp_max(len(known.halvings) - 1))
    if norm == "linf":
        return change_one_window(best, key, items, known, halvings)
    return change_two_windows(best, key, items, known, halvings, norm)


# ---------------------------------------------------------------------------------------- windows


def window_sides(p: float, height: int, width: int, norm: Norm) -> list[int]:
    """The windows' side after 0, 1, ..., 9 halvings of p: round(sqrt(p * h * w)), no more than the
    image holds; for eta odd and, where the image holds it, at least 3."""
    most = min(height, width)
    wanted = [round(math.sqrt(p * height * width / 2**i)) for i in range(len(HALVED_AFTER) + 1)]
    if norm == "linf":
        return [min(max(side, 1), most) for side in wanted]
    return [min(max(side, 3) // 2 * 2 + 1, most - 1 + most % 2) for side in wanted]


class Tables(NamedTuple):
    """What depends on p, the images' shape and the norm alone, kept on the model's device: a turn
    that is replayed there must not fetch anything from the host."""

    halvings: Tensor
    """Of p at each proposal until there are no more, (8002,), int64."""
    side: Tensor
    """By halvings, (10,), int64."""
    size: Tensor
    """Height and width, (2,), int64."""
    longest: int
    eta: Tensor
    """By halvings and turn, in a margin of zeros, (10, 2, most + 2, most + 2), most the first side;
    all zeros in linf, which needs none."""


@cache
def make_tables(
    p: float, height: int, width: int, norm: Norm, dtype: torch.dtype, device: torch.device
) -> Tables:
    number = torch.arange(HALVED_AFTER[-1] + 2)
    halvings = (number[:, None] > torch.tensor(HALVED_AFTER)).sum(1)
    side = window_sides(p, height, width, norm)
    etas = torch.zeros(len(side), 2, max(side) + 2, max(side) + 2, dtype=torch.float64)
    for both, s in zip(etas, side if norm != "linf" else [], strict=False):
        both[0, 1 : s + 1, 1 : s + 1] = make_eta(s, norm)
        both[1, 1 : s + 1, 1 : s + 1] = make_eta(s, norm).T
    return Tables(
        halvings=halvings.to(device),
        side=torch.tensor(side).to(device),
        size=torch.tensor([height, width]).to(device),
        longest=max(height, width),
        eta=etas.to(device, dtype),
    )


def locate_windows(u: Tensor, side: Tensor, known: Tables) -> Tensor:
    """Where each pixel lies in m square windows whose places u (n, m, 2), from U[0, 1), draws, all
    equally likely: down and across, (n, m, 2, longer side), 0 to side - 1 inside."""
    first = (u * (known.size + 1 - side[:, None, None])).long()
    return torch.arange(known.longest, device=u.device) - first[..., None]


def window_masks(at: Tensor, side: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """1 inside each window and 0 outside, in the dtype of `like`, by rows (n, m, h) and by columns
    (n, m, w): to multiply by both is several times quicker than torch.where."""
    inside = ((at >= 0) & (at < side[:, None, None, None])).to(like.dtype)
    return inside[:, :, 0, : like.shape[2]], inside[:, :, 1, : like.shape[3]]


def draw_signs(u: Tensor, like: Tensor) -> Tensor:
    """1 or -1, equally likely if u is from U[0, 1), in the dtype of `like`."""
    return 1 - 2 * (u < 0.5).to(like.dtype)


def by_channel(values: Tensor) -> Tensor:
    """(n, c) as (n, c, 1, 1)."""
    return values[..., None, None]


# ------------------------------------------------------------------------------------------- linf


def start_stripes(items: AttackBatch, noise: Noise) -> Tensor:
    """x +- eps by a sign for each column of each channel, in the box."""
    radius = per_row(items.eps, items.x)
    down = noise.uniform(items.x[:, :, :1]) < 0
    return (items.x + torch.where(down, -radius, radius)).clamp(0, 1)


def change_one_window(
    best: Tensor, key: Tensor, items: AttackBatch, known: Tables, halvings: Tensor
) -> Tensor:
    """`best`, moved in a square so far that its projection is x + eps or x - eps there."""
    side = known.side.index_select(0, halvings)
    u = hash_uniform(key, items.k, 2 + best.shape[1])
    rows, columns = window_masks(locate_windows(u[:, None, :2], side, known), side, best)
    far = 2 * by_channel(draw_signs(u[:, 2:], best))  # more than the box is wide
    moved = torch.addcmul(best, far * rows[..., None], columns[:, :, None])
    radius = per_row(items.eps, best)
    lowest, highest = (items.x - radius).clamp_(0, 1), (items.x + radius).clamp_(0, 1)
    return torch.minimum(torch.maximum(moved, lowest), highest)


# -------------------------------------------------------------------------------------- l2 and l1


def make_hill(height: int, width: int, norm: Norm) -> Tensor:
    """Rings around the middle, (h, w), of norm 1: at a distance of d rows or columns, whichever are
    more, the sum of (m + 1)^-2, in l1 (m + 1)^-4, over m from d to half the longer side."""
    rows = (torch.arange(height) - height // 2).abs()
    columns = (torch.arange(width) - width // 2).abs()
    numbers = torch.arange(1, max(height, width) // 2 + 2, dtype=torch.float64)
    terms = numbers ** (-4 / POWER[norm])
    rings = terms.flip(0).cumsum(0).flip(0)[torch.maximum(rows[:, None], columns)]
    return rings / norm_of_all(rings, norm)


def make_eta(side: int, norm: Norm) -> Tensor:
    """A hill above a valley, (side, side), of norm 1, float64."""
    upper = side // 2
    both = torch.cat([make_hill(upper, side, norm), -make_hill(side - upper, side, norm)])
    return both / norm_of_all(both, norm)


def norm_of_all(values: Tensor, norm: Norm) -> Tensor:
    """The norm of all values together, a scalar; of none, as in the upper half of one pixel, 0."""
    return values.abs().pow(POWER[norm]).sum().pow(1 / POWER[norm])


def start_tiles(items: AttackBatch, noise: Noise, norm: Norm) -> Tensor:
    """x plus five rows of five etas (or as many as fit), each turned or not and with a sign for
    each channel; in the box and, in l2 exactly, at a distance of eps before that."""
    n, channels, height, width = items.x.shape
    side = max(min(height, width) // 5, 1)
    down, across = height // side, width // side
    drawn = noise.uniform(items.x.new_empty(n, channels + 1, down, across)) < 0
    drawn = by_channel(drawn)  # (n, c + 1, down, across, 1, 1)
    shape = make_eta(side, norm).to(items.x)
    tile = torch.where(drawn[:, :1], shape.T, shape)
    tile = torch.where(drawn[:, 1:], -tile, tile)  # (n, c, down, across, side, side)
    tiled = tile.transpose(3, 4).reshape(n, channels, down * side, across * side)
    delta = torch.zeros_like(items.x)
    top, left = (height - down * side) // 2, (width - across * side) // 2
    delta[:, :, top : top + down * side, left : left + across * side] = tiled
    if norm == "l1":
        return project_l1_box(items.x + delta, items.x, items.eps)
    start = (items.x + delta * per_row(items.eps / norm_of(delta, norm), delta)).clamp(0, 1)
    return round_into_ball(start, items.x, items.eps, norm)


def change_two_windows(
    best: Tensor, key: Tensor, items: AttackBatch, known: Tables, halvings: Tensor, norm: Norm
) -> Tensor:
    """`best` with the length of two windows, and what is left of eps, in the first of them.

    With delta what was there, that gets sign * eta + delta / |delta| scaled to this length, channel
    by channel; the second gets x. In l2 the squared lengths so add up to eps^2, or to less where
    the box cuts or eta cancels delta; in l1 more is given, and projected.
    """
    side, channels = known.side.index_select(0, halvings), best.shape[1]
    u = hash_uniform(key, items.k, 5 + channels)
    at = locate_windows(u[:, :4].view(-1, 2, 2), side, known)
    rows, columns = window_masks(at, side, best)  # (n, 2, h), (n, 2, w)
    shape = place_eta(known.eta, 2 * halvings + (u[:, 4] < 0.5), at[:, 0], best)
    sign, squared = draw_signs(u[:, 5:], best), norm == "l2"

    delta = best - items.x
    whole, first, second, common = rectangle_sums(
        delta.square() if squared else delta.abs(),
        *(
            torch.cat([torch.ones_like(each[:, :1]), each, each[:, :1] * each[:, 1:]], 1)
            for each in (rows, columns)
        ),
    )
    budget = items.eps.square() if squared else items.eps
    left = (budget - whole.sum(1)).clamp_min(0) / channels
    wanted = (first + second - common).clamp_min(0) + left[:, None]  # (n, c)
    wanted, first = (wanted.sqrt(), first.sqrt()) if squared else (wanted * channels, first)

    window, second_window = (rows[..., None] * columns[:, :, None]).split(1, 1)  # (n, 1, h, w)
    there = delta * window
    # sign * (eta + sign * delta / |delta|), so that the signs multiply (n, c) numbers only.
    mixed = shape.addcmul(there, by_channel(sign / (first + TINY)))
    scale = sign * wanted / (torch.linalg.vector_norm(mixed, POWER[norm], (2, 3)) + TINY)
    kept = delta - there
    kept = kept.addcmul(kept, second_window, value=-1)
    x = (items.x + kept).addcmul_(mixed, by_channel(scale))
    if squared:
        return round_into_ball(x.clamp_(0, 1), items.x, items.eps, norm)
    return project_l1_box(x, items.x, items.eps)


def place_eta(etas: Tensor, number: Tensor, at: Tensor, like: Tensor) -> Tensor:
    """The eta of each row's `number` (n,) in its window, which `at` (n, 2, longer side) places, and
    0 elsewhere, (n, 1, h, w)."""
    edge = etas.shape[-1]
    row, column = (at + 1).clamp(0, edge - 1).unbind(1)
    row, column = row[:, : like.shape[2]], column[:, : like.shape[3]]
    where = ((number[:, None] * edge + row) * edge)[:, :, None] + column[:, None]  # (n, h, w)
    return etas.flatten().index_select(0, where.flatten()).view(where.shape)[:, None]


def rectangle_sums(values: Tensor, rows: Tensor, columns: Tensor) -> Sequence[Tensor]:
    """Sums of `values` (n, c, h, w) over r rectangles each, of which the masks (n, r, h) and
    (n, r, w) are the sides: r tensors (n, c)."""
    return ((rows[:, None] @ values) * columns[:, None]).sum(3).unbind(2)


def traits(params: Params, norm: Norm, eps: float) -> Mapping[str, str]:
    return {
        "start": "stripes" if norm == "linf" else "tiles",
        "steps": str(params.steps),
        "p": f"{params.p:g}, halved after {', '.join(map(str, HALVED_AFTER))}",
        "loss": params.loss,
        "restarts": str(params.restarts),
    }


ATTACK = Attack(
    summary="random search over square windows, by the model's scores alone",
    source="Andriushchenko et al. 2020",
    params=Params,
    norms=("linf", "l2", "l1"),
    needs="scores",
    stochastic=True,
    rule=Rule(init=init, respond=respond, result=result),
    traits=traits,
)
