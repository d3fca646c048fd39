"""The shortest way from a point of the box onto a hyperplane, within the box, in linf, l2 or l1.

Source: Croce and Hein 2020, section 2.2 and appendix A, https://arxiv.org/abs/1907.02044
"""

import torch
from torch import Tensor

from bench.contracts import Norm


def shortest(x: Tensor, slope: Tensor, rise: Tensor, norm: Norm) -> Tensor:
    """The step d of least norm for which <slope, d> = rise and x + d is in the box [0, 1].

    Shapes: x in the box and slope (n, *input), rise (n,); result as x. Where no point of the box
    lies on the hyperplane, the step leads to a corner that comes nearest to it; a pixel on which
    the hyperplane does not depend stays.
    """
    gradient = slope.flatten(1) * rise.sign()[:, None]  # the way to go now is up
    # Of its own scale, or the squares of a saturated net's gradients underflow to 0.
    scale = gradient.abs().amax(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    steep, needed = gradient.abs() / scale, rise.abs()[:, None] / scale
    flat = x.flatten(1)
    room = torch.where(gradient > 0, 1 - flat, flat).masked_fill(gradient == 0, 0)
    if norm == "linf":
        moved = torch.minimum(_level(steep, room, steep * room, needed), room)
    elif norm == "l2":
        reach = (room / steep).nan_to_num(0.0)
        moved = torch.minimum(_level(steep.square(), reach, steep * room, needed) * steep, room)
    elif norm == "l1":
        moved = _steepest_first(steep, room, needed)
    else:
        raise ValueError(f"there is no projection onto a hyperplane in {norm}")
    return (gradient.sign() * moved).view_as(x)


def _level(weight: Tensor, reach: Tensor, most: Tensor, needed: Tensor) -> Tensor:
    """The level at which the sum over i of weight_i min(level, reach_i) is what is needed, (n, 1).

    Shapes: weight, reach and most = weight * reach (n, d), needed (n, 1). The sum is concave and
    piecewise linear in the level: the least of its tangents, one from each point at which an entry
    has reached its end. So the level is the largest of those at which a tangent has what is needed.
    """
    order = reach.argsort(1)
    ended = most.gather(1, order)
    before = ended.cumsum(1) - ended
    moving = weight.gather(1, order).flip(1).cumsum(1).flip(1)
    limits = torch.finfo(weight.dtype)
    at = (needed - before) / moving.clamp_min(limits.tiny)
    return at.amax(1, keepdim=True).clamp(0, limits.max)  # finite, so that 0 times it is 0


def _steepest_first(steep: Tensor, room: Tensor, needed: Tensor) -> Tensor:
    """How far each entry moves if the steepest go first, each as far as there is room, (n, d)."""
    steepest, order = steep.sort(1, descending=True)
    most = steepest * room.gather(1, order)
    share = (needed - (most.cumsum(1) - most)).clamp_min(0)
    moved = torch.minimum(share, most) / steepest.clamp_min(torch.finfo(steep.dtype).tiny)
    return torch.minimum(torch.zeros_like(moved).scatter(1, order, moved), room)
