"""Projections onto balls and the box, and steepest ascent directions, pure and out of place.

Images are (n, *input) in the box [0, 1]; per-row numbers such as eps are (n,).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from bench.core.contracts.types import Norm
from bench.engine.functional.norms import ABSOLUTE, RELATIVE, norm_of, per_row, smallest_normal


def round_into_ball(x: Tensor, x0: Tensor, eps: Tensor, norm: Norm) -> Tensor:
    """Round rows that float32 rounding moved out of the ball towards its centre.

    An entry is x0 plus its change, rounded by up to 2**-25. In l1 all changes, which are multiples
    of 2**-24, are shortened by the same amount and so rounded the same way: over 150,000 entries
    that adds up to thousandths. So the distance is measured in float64. Of a row that exceeds eps
    by more than half of what the verifier allows, the changes are scaled to eps and added in
    float64, and an entry that rounding moves beyond that goes one float32 towards x0. No entry is
    then further from x0 than in exact arithmetic, which bounds the norm. All other rows keep their
    bits, and so does every row in linf and l0, where no sum is formed.

    Args:
        x: Images in the box, (n, *input).
        x0: Centres in the box, (n, *input).
        eps: Radii, (n,).
        norm: Norm of the ball.

    Returns:
        Images in the ball and in the box, as `x`.
    """
    if norm in ("linf", "l0"):
        return x
    delta = x.double() - x0.double()
    length = norm_of(delta, norm)
    radius = eps.double()
    outside = length > radius + (ABSOLUTE + RELATIVE * radius) / 2
    # On a GPU, and where a step is recorded, asking for a value would make the host wait.
    if x.device.type == "cpu" and get_proxy_mode() is None and not outside.any():
        return x
    wanted = delta * per_row(torch.where(outside, radius / length, 1.0), delta)
    shorter = (x0.double() + wanted).to(x.dtype)
    beyond = (shorter.double() - x0.double()).abs() > wanted.abs()
    shorter = torch.where(beyond, torch.nextafter(shorter, x0), shorter)
    return torch.where(per_row(outside, x), shorter, x)


def project(x: Tensor, x0: Tensor, eps: Tensor, norm: Norm) -> Tensor:
    """Project onto the ball, then onto the box [0, 1].

    For linf, where the two commute, and for l1 the result is the nearest point of both. For l2 and
    l0 it is the nearest point of the ball, then of the box: the second step shrinks every |x - x0|
    and so stays in the ball.

    Args:
        x: Images, (n, *input).
        x0: Centres in the box, (n, *input).
        eps: Radii, (n,), in the unit of the norm.
        norm: Norm of the ball.

    Returns:
        Projected images, as `x`, corrected by `round_into_ball`.
    """
    radius = per_row(eps, x)
    if norm == "linf":
        return torch.clamp(x, x0 - radius, x0 + radius).clamp_(0, 1)
    if norm == "l1":
        return project_l1_box(x, x0, eps)
    delta = x - x0
    if norm == "l2":
        length = per_row(norm_of(delta, "l2"), x)
        nearest = delta * (radius / length.clamp_min(smallest_normal(x)))
        nearest = torch.where(length <= radius, delta, nearest)
    else:
        nearest = keep_largest(delta.flatten(1), eps).view_as(delta)
    return round_into_ball(
        torch.where(nearest == delta, x, x0 + nearest).clamp(0, 1), x0, eps, norm
    )


class Box(NamedTuple):
    """The least and the largest value of each entry in ball and box, for linf."""

    lowest: Tensor
    highest: Tensor


class NoBox(NamedTuple):
    """In place of a `Box` in the other norms, whose balls are none."""


def make_box(x0: Tensor, eps: Tensor, norm: Norm) -> Box | NoBox:
    """Compute once what the projections of all steps of an attack need.

    Args:
        x0: Centres in the box, (n, *input).
        eps: Radii, (n,), in the unit of the norm.
        norm: Norm of the ball.

    Returns:
        The bounds for linf, as images; nothing for the other norms.
    """
    if norm != "linf":
        return NoBox()
    radius = per_row(eps, x0)
    return Box((x0 - radius).clamp_(0, 1), (x0 + radius).clamp_(0, 1))


def project_into(x: Tensor, box: Box | NoBox, x0: Tensor, eps: Tensor, norm: Norm) -> Tensor:
    """Project as `project` does, to the bit, with the bounds that `make_box` computed.

    Args:
        x: Images, (n, *input).
        box: What `make_box` returned for the same centres, radii and norm.
        x0: Centres in the box, (n, *input).
        eps: Radii, (n,), in the unit of the norm.
        norm: Norm of the ball.

    Returns:
        Projected images, as `x`.
    """
    if isinstance(box, Box):
        return torch.clamp(x, box.lowest, box.highest)
    return project(x, x0, eps, norm)


def project_l1_box(x: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
    """Project onto the intersection of the l1 ball and the box [0, 1].

    An entry moves towards x by min(max(|x - x0| - t, 0), its distance to the wall), t >= 0 the
    least number for which all these add up to eps at most. Projecting onto ball and box in turn
    would lose to the other entries what the box cuts off.

    Source: Croce and Hein 2021, section 2, https://arxiv.org/abs/2103.01208

    Args:
        x: Images, (n, *input).
        x0: Centres in the box, (n, *input).
        eps: Radii in l1, (n,).

    Returns:
        Projected images, as `x`, corrected by `round_into_ball`.
    """
    delta = x - x0
    length = delta.flatten(1).abs().double()  # so that sums over many entries stay exact
    room = torch.where(delta > 0, 1 - x0, x0).flatten(1).double()
    threshold = _l1_threshold(length, room, eps.double())[:, None].clamp_min(0)
    fits = torch.minimum(length, room)
    shrunk = torch.minimum((length - threshold).clamp_min(0), room)
    moved = torch.where(fits.sum(1, keepdim=True) <= eps[:, None], fits, shrunk)
    moved = torch.where(eps[:, None] > 0, moved, 0.0)  # exactly, however small the entries are
    nearest = delta.sign() * moved.view_as(delta).to(delta.dtype)
    return round_into_ball(
        torch.where(nearest == delta, x, x0 + nearest).clamp(0, 1), x0, eps, "l1"
    )


def project_jointly(x: Tensor, x0: Tensor, eps: Tensor, norm: Norm) -> Tensor:
    """Project onto the intersection of ball and box [0, 1], in every norm.

    The result is nearest to x in l2. In l2 an entry moves by min(t |x - x0|, its distance to the
    wall), t <= 1 the largest number for which the length is at most eps. In l0 those entries move,
    as far as the box allows, that bring it nearest to x.

    Args:
        x: Images, (n, *input).
        x0: Centres in the box, (n, *input).
        eps: Radii, (n,), in the unit of the norm.
        norm: Norm of the ball.

    Returns:
        Projected images, as `x`, corrected by `round_into_ball`.
    """
    if norm == "linf":
        return project(x, x0, eps, norm)
    if norm == "l1":
        return project_l1_box(x, x0, eps)
    delta = x - x0
    length = delta.flatten(1).abs().double()  # so that sums over many entries stay exact
    room = torch.where(delta > 0, 1 - x0, x0).flatten(1).double()
    moved = torch.minimum(length, room)
    if norm == "l2":
        moved = torch.minimum(_l2_scale(length, room, eps.double())[:, None] * length, room)
    else:
        gain = length.square() - (length - moved).square()
        moved = torch.where(keep_largest(gain, eps) > 0, moved, 0.0)
    offset = delta.sign() * moved.view_as(delta).to(delta.dtype)
    inside = torch.where(offset == delta, x, x0 + offset).clamp(0, 1)
    return round_into_ball(inside, x0, eps, norm)


def keep_largest(values: Tensor, count: Tensor) -> Tensor:
    """Set all but the largest entries of each row to 0.

    Args:
        values: Rows, (n, d).
        count: Number of entries to keep, rounded down, (n,).

    Returns:
        `values` with all but the `count` entries of largest magnitude set to 0, (n, d).
    """
    rank = values.abs().argsort(dim=1, descending=True).argsort(dim=1)
    return torch.where(rank < count[:, None].floor(), values, torch.zeros_like(values))


def steepest_direction(gradient: Tensor, norm: Norm) -> Tensor:
    """Compute the unit direction along which a linear function rises most.

    linf: the signs. l2: the gradient over its length. l1 and l0: the signed unit vector of its
    largest entry (in l0 the box limits the step, not the norm).

    Args:
        gradient: Gradients of the linear function, (n, *input).
        norm: Norm in which the direction has length 1.

    Returns:
        Directions, as `gradient`; a row of zeros stays zero.
    """
    if norm == "linf":
        return gradient.sign()
    if norm == "l2":
        tiny = smallest_normal(gradient)
        scaled = gradient / per_row(norm_of(gradient, "linf"), gradient).clamp_min(tiny)
        return scaled / per_row(norm_of(scaled, "l2"), gradient).clamp_min(tiny)
    flat = gradient.flatten(1)
    largest = flat.abs().argmax(1, keepdim=True)
    unit = torch.zeros_like(flat).scatter_(1, largest, flat.gather(1, largest).sign())
    return unit.view_as(gradient)


def step_steepest(x: Tensor, gradient: Tensor, length: Tensor, norm: Norm) -> Tensor:
    """Make a step of a length in the steepest direction.

    Args:
        x: Images, (n, *input).
        gradient: Gradients of the linear function, (n, *input).
        length: Lengths, (n,).
        norm: Norm in which the lengths are.

    Returns:
        Images after the step, not projected.
    """
    direction = steepest_direction(gradient, norm)
    if norm == "linf":  # a product with a sign is exact, so that one kernel has the bits of two
        return torch.addcmul(x, per_row(length, x), direction)
    return x + per_row(length, x) * direction


def steepest_sparse_step(gradient: Tensor, x: Tensor, alpha: Tensor, share: float) -> Tensor:
    """Compute the l1 step within the box along which a linear function rises most.

    No entry moves by more than alpha over the `share` of the number of entries. The largest entries
    move first, each as far as it may; a step is shorter than alpha only where nothing more can
    move. A step of one entry alone, as in `steepest_direction`, would end at that entry's wall.

    Source: Tramer and Boneh 2019, section 3.3, https://arxiv.org/abs/1904.13000. There, all entries
    of the share move alike, without those that are at a wall.

    Args:
        gradient: Gradients of the linear function, (n, *input).
        x: Images in the box, (n, *input).
        alpha: Length of the step in l1, (n,).
        share: Share of the entries that a step moves, in (0, 1].

    Returns:
        Steps, as `x`.
    """
    flat, length = gradient.flatten(1), alpha[:, None]
    room = torch.where(flat > 0, 1 - x.flatten(1), x.flatten(1)) * (flat != 0)
    most = torch.minimum(room, length / math.ceil(share * flat.shape[1]))
    order = flat.abs().argsort(dim=1, descending=True)
    most = most.gather(1, order)
    spent = (most.cumsum(1) - most).clamp_max(length)
    moved = torch.zeros_like(flat).scatter_(1, order, torch.minimum(most, length - spent))
    return (moved * flat.sign()).view_as(gradient)


def _l1_threshold(length: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """Solve for t: sum of min(max(length - t, 0), room) over a row (n, d) equals eps (n,).

    The result is below 0 where that sum is no more than eps at t = 0. Each term is max(length - t,
    0) - max(length - room - t, 0): between two of these 2 d corners, sorted, the sum is linear in
    t.
    """
    corners, order = torch.cat([length, length - room], 1).sort(dim=1, descending=True)
    sign = torch.where(order < length.shape[1], 1.0, -1.0)
    falls, total = sign.cumsum(1), (sign * corners).cumsum(1)
    reached = total - falls * corners <= eps[:, None]  # the sum at each corner
    last = reached.sum(1, keepdim=True).clamp_min(1) - 1
    excess = total.gather(1, last)[:, 0] - eps
    return excess / falls.gather(1, last)[:, 0].clamp_min(1)


def _l2_scale(length: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """Find the largest t <= 1 with the sum of min(t * length, room)^2 over a row at most eps^2.

    Shapes: length, room (n, d); eps and the result (n,). Entry i reaches its wall at t = room_i /
    length_i: between two of these corners, sorted, the sum is that of the walls reached plus t
    squared times that of the lengths left. The last corner reached bounds t from below: where the
    walls alone add up to eps^2, no length may be left to solve for t.
    """
    corners, order = torch.where(length > 0, room / length, torch.inf).sort(dim=1)
    none = torch.zeros_like(eps)[:, None]
    walls = torch.cat([none, room.gather(1, order).square().cumsum(1)], 1)
    squares = torch.cat([none, length.gather(1, order).square().cumsum(1)], 1)
    free = (squares[:, -1:] - squares).clamp_min(0)
    reached = walls[:, 1:] + corners.square() * free[:, 1:] <= eps[:, None].square()
    last = reached.sum(1, keepdim=True)
    left = eps[:, None].square() - walls.gather(1, last)
    share = left.clamp_min(0) / free.gather(1, last).clamp_min(smallest_normal(free))
    corner = torch.cat([none, corners], 1).gather(1, last)
    return torch.maximum(share.sqrt(), corner).clamp_max(1)[:, 0]
