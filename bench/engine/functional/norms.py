"""Norms, balls and boxes: all the geometry of the threat models, pure and out of place.

Images are (n, *input) in the box [0, 1]; one number per row, such as eps or a distance, is (n,).
"""

import math

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from bench.core.contracts.types import Norm
from bench.core.rng import Noise

ABSOLUTE, RELATIVE = 1e-6, 1e-5
"""What a distance may exceed eps by, absolutely and relatively: float32 rounding, no more."""
MEASURED_AT_ONCE = 64
"""Rows whose distance is measured in one piece, so that float64 does not double the memory."""


def per_row(value: Tensor, like: Tensor) -> Tensor:
    """`value` (n,) shaped (n, 1, ..., 1), so that it broadcasts over the rows of `like`."""
    return value.view(-1, *[1] * (like.dim() - 1))


def norm_of(delta: Tensor, norm: Norm) -> Tensor:
    """The norm of each row of `delta` (n, *input), shape (n,); l0 counts entries that are not 0."""
    flat = delta.flatten(1)
    if norm == "linf":
        return flat.abs().amax(1)
    if norm == "l2":
        # Scaled first, or the squares of a saturated net's gradients underflow to 0.
        scale = flat.abs().amax(1)
        scaled = flat / scale.clamp_min(smallest_normal(flat))[:, None]
        return scaled.square().sum(1).sqrt() * scale
    if norm == "l1":
        return flat.abs().sum(1)
    return (flat != 0).sum(1).to(delta.dtype)


def distance(x: Tensor, x0: Tensor, norm: Norm) -> Tensor:
    """How far each row of `x` is from `x0`, both (n, *input); shape (n,)."""
    return norm_of(x - x0, norm)


def distance_float64(x: Tensor, x0: Tensor, norm: Norm) -> Tensor:
    """As `distance`, in float64: what ball an image is in is judged by this, since a sum over many
    entries in float32 may be off by more than the ball's tolerance."""
    pieces = zip(x.split(MEASURED_AT_ONCE), x0.split(MEASURED_AT_ONCE), strict=True)
    return torch.cat([distance(each.double(), clean.double(), norm) for each, clean in pieces])


def round_into_ball(x: Tensor, x0: Tensor, eps: Tensor, norm: Norm) -> Tensor:
    """`x`, and where rounding to float32 took a row out of the ball of radius `eps` (n,) around
    `x0`, that row rounded towards x0 instead.

    Shapes: x, x0 (n, *input), both in the box [0, 1]; result as x, and in the box.
    An entry is x0 plus its change, rounded by up to 2**-25. In l1 all changes, which are multiples
    of 2**-24, are shortened by the same amount and so rounded the same way: over 150,000 entries
    that adds up to thousandths. So the distance is measured in float64; a row that is further away
    than eps by more than half of what the verifier allows is brought back: its changes, scaled to
    eps, are added in float64, and an entry that rounding moves beyond that goes one float32 towards
    x0. No entry is then further from x0 than in exact arithmetic, which holds the norm. All other
    rows keep their bits, and so does every row in linf and l0, where no sum is formed.
    """
    if norm in ("linf", "l0"):
        return x
    delta = x.double() - x0.double()
    far = norm_of(delta, norm)
    radius = eps.double()
    over = far > radius + (ABSOLUTE + RELATIVE * radius) / 2
    # On a GPU, and where a turn is recorded, nobody may ask.
    if x.device.type == "cpu" and get_proxy_mode() is None and not over.any():
        return x
    wanted = delta * per_row(torch.where(over, radius / far, 1.0), delta)
    shorter = (x0.double() + wanted).to(x.dtype)
    beyond = (shorter.double() - x0.double()).abs() > wanted.abs()
    shorter = torch.where(beyond, torch.nextafter(shorter, x0), shorter)
    return torch.where(per_row(over, x), shorter, x)


def project(x: Tensor, x0: Tensor, eps: Tensor, norm: Norm) -> Tensor:
    """`x` brought into the ball of radius `eps` (n,) around `x0`, then into the box [0, 1].

    Shapes: x, x0 (n, *input) with x0 in the box; result as x, `landed`.
    The nearest point for linf, where ball and box commute, and for l1. For l2 and l0 the nearest
    point of the ball, then of the box: the second step shrinks every |x - x0| and so keeps the
    first.
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
        nearest = torch.where(length <= radius, delta, project_jointly)
    else:
        nearest = keep_largest(delta.flatten(1), eps).view_as(delta)
    return round_into_ball(
        torch.where(nearest == delta, x, x0 + nearest).clamp(0, 1), x0, eps, norm
    )


def project_l1_box(x: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
    """The point nearest to `x` among those of the box [0, 1] that are in the l1 ball of radius
    `eps` (n,) around `x0`.

    Shapes: x, x0 (n, *input) with x0 in the box; result as x, `landed`.
    An entry moves towards x by min(max(|x - x0| - t, 0), its way to the wall), t >= 0 the least
    number for which all these add up to eps at most. Ball and box in turn would lose to
    the other entries what the box cuts off.
    Source: Croce and Hein 2021, section 2, https://arxiv.org/abs/2103.01208
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
    """The point nearest to `x` (in l2) of those that lie in the ball of radius `eps` (n,) around
    `x0` and in the box [0, 1], where `project` takes one after the other.

    Shapes: x, x0 (n, *input) with x0 in the box; result as x.
    l2: an entry moves by min(t |x - x0|, its way to the wall), t <= 1 the largest number for which
    the length is at most eps. l0: those entries move, as far as the box allows, that bring it
    nearest to x.
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
    return round_into_ball(torch.where(offset == delta, x, x0 + offset).clamp(0, 1), x0, eps, norm)


def steepest_direction(gradient: Tensor, norm: Norm) -> Tensor:
    """The direction of unit norm along which a linear function with `gradient` rises most.

    Shapes: gradient (n, *input), result the same; a row of zeros stays zero.
    linf: the signs. l2: the gradient over its length. l1 and l0: the signed unit vector of its
    largest entry (for l0 the box limits the step, not the norm).
    """
    if norm == "linf":
        return gradient.sign()
    if norm == "l2":
        scale = per_row(norm_of(gradient, "linf"), gradient).clamp_min(smallest_normal(gradient))
        scaled = gradient / scale
        return scaled / per_row(norm_of(scaled, "l2"), gradient).clamp_min(
            smallest_normal(gradient)
        )
    flat = gradient.flatten(1)
    largest = flat.abs().argmax(1, keepdim=True)
    unit = torch.zeros_like(flat).scatter_(1, largest, flat.gather(1, largest).sign())
    return unit.view_as(gradient)


def steepest_sparse_step(gradient: Tensor, x: Tensor, alpha: Tensor, share: float) -> Tensor:
    """The step of l1 length `alpha` (n,) within the box [0, 1] by which a linear function with
    `gradient` rises most, no entry moving by more than alpha over the `share` of their number.

    Shapes: gradient and x (n, *input), result the same. The largest entries move first, each as far
    as it may; a step is shorter than alpha only where nothing more can move. Of one entry alone, as
    `steepest` has it, a step in l1 would end at that entry's wall.
    Source: Tramer and Boneh 2019, section 3.3, https://arxiv.org/abs/1904.13000, which moves all of
    the share alike and leaves out those that are at a wall.
    """
    flat, length = gradient.flatten(1), alpha[:, None]
    room = torch.where(flat > 0, 1 - x.flatten(1), x.flatten(1)) * (flat != 0)
    most = torch.minimum(room, length / math.ceil(share * flat.shape[1]))
    order = flat.abs().argsort(dim=1, descending=True)
    most = most.gather(1, order)
    spent = (most.cumsum(1) - most).clamp_max(length)
    moved = torch.zeros_like(flat).scatter_(1, order, torch.minimum(most, length - spent))
    return (moved * flat.sign()).view_as(gradient)


def random_in_ball(like: Tensor, eps: Tensor, norm: Norm, noise: Noise) -> Tensor:
    """A random offset within the ball of radius `eps` (n,) for each row; shape of `like`.

    linf and l2: uniform in the ball. l1: uniform in the ball (normalised exponential gaps).
    l0: floor(eps) uniformly chosen entries, each moved by U(-1, 1).
    Source: l2 Voelker et al. 2017 (direction of a Gaussian, radius U^(1/d)); l1 Calafiore,
    Dabbene and Tempo 1998, https://doi.org/10.1109/81.735436
    """
    radius = per_row(eps, like)
    if norm == "linf":
        return radius * noise.uniform(like)
    d = like[0].numel()
    share = per_row(noise.unit(like) ** (1 / d), like)
    if norm == "l2":
        return radius * share * steepest_direction(noise.normal(like), "l2")
    if norm == "l1":
        draw = noise.uniform(like)
        gaps = -torch.log(1 - draw.abs().clamp_max(1 - 1e-7))
        direction = draw.sign() * gaps / per_row(gaps.flatten(1).sum(1), like)
        return radius * share * direction
    chosen = keep_largest(noise.uniform(like, draw=1).flatten(1), eps).view_as(like) != 0
    return torch.where(chosen, noise.uniform(like), torch.zeros_like(like))


def smallest_normal(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny


def _l1_threshold(length: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """t at which the sum of min(max(length - t, 0), room) over a row (n, d) is eps (n,); below 0
    where that sum is no more than eps at t = 0.

    Each term is max(length - t, 0) - max(length - room - t, 0): between two of these 2 d corners,
    sorted, the sum is linear in t.
    """
    corners, order = torch.cat([length, length - room], 1).sort(dim=1, descending=True)
    sign = torch.where(order < length.shape[1], 1.0, -1.0)
    falls, total = sign.cumsum(1), (sign * corners).cumsum(1)
    reached = total - falls * corners <= eps[:, None]  # the sum at each corner
    last = reached.sum(1, keepdim=True).clamp_min(1) - 1
    excess = total.gather(1, last)[:, 0] - eps
    return excess / falls.gather(1, last)[:, 0].clamp_min(1)


def _l2_scale(length: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """The largest t <= 1 for which the squares of min(t * length, room) over a row (n, d) sum up to
    eps squared (n,) at most.

    Entry i reaches its wall at t = room_i / length_i: between two of these corners, sorted, the sum
    is that of the walls reached plus t squared times that of the lengths left.
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
    return share.sqrt().clamp_max(1)[:, 0]


def keep_largest(delta: Tensor, eps: Tensor) -> Tensor:
    """Each row of `delta` (n, d) with all but its floor(eps) largest entries set to 0."""
    rank = delta.abs().argsort(dim=1, descending=True).argsort(dim=1)
    return torch.where(rank < eps[:, None].floor(), delta, torch.zeros_like(delta))
