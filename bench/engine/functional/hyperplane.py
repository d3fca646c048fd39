"""The shortest way from a point of the box onto a hyperplane, within the box, in linf, l2 or l1.

Source: Croce and Hein 2020, section 2.2 and appendix A, https://arxiv.org/abs/1907.02044
"""

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from bench.core.contracts.types import Norm

MOST = 40
"""Newton's steps; rarely more than ten are needed, and after fewer than are the step falls short of
the hyperplane."""
ENOUGH = 4
"""How many roundings of the level are no rise of it."""


def shortest_step(x: Tensor, slope: Tensor, rise: Tensor, norm: Norm) -> Tensor:
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
    way = gradient.sign()
    # 1 - x up, x down, 0 where nothing is to be had; several times quicker than torch.where.
    room = (0.5 + 0.5 * way - way * flat) * way.abs()
    if norm == "linf":
        moved = torch.minimum(_level(steep, room, steep * room, needed), room)
    elif norm == "l2":
        reach = (room / steep).nan_to_num(0.0)
        moved = torch.minimum(_level(steep.square(), reach, steep * room, needed) * steep, room)
    elif norm == "l1":
        moved = _steepest_first(steep, room, needed)
    else:
        raise ValueError(f"there is no projection onto a hyperplane in {norm}")
    return (way * moved).view_as(x)


def _level(weight: Tensor, reach: Tensor, most: Tensor, needed: Tensor) -> Tensor:
    """The level at which the sum over i of weight_i min(level, reach_i) is what is needed, (n, 1).

    Shapes: weight, reach and most = weight * reach (n, d), needed (n, 1). The sum is concave and
    piecewise linear in the level, so Newton's steps from 0 rise to the root without passing it, and
    end in it once its piece is reached: a handful of sums, where a sort of the reaches is ten times
    as slow. A row at its root stays there, so none depends on how long another one takes.
    """
    limits = torch.finfo(weight.dtype)
    level = torch.zeros_like(needed)
    for _ in range(MOST):
        ended = (level - reach).sign_().add_(1).clamp_max_(1)  # 1 where level >= reach, else 0
        there = (ended * most).sum(1, keepdim=True)
        moving = (weight - ended * weight).sum(1, keepdim=True)
        # Nothing left to move: the level is of no consequence, but finite, or 0 times it is NaN.
        root = ((needed - there) / moving.clamp_min(limits.tiny)).clamp(0, limits.max)
        rises = root > level * (1 + ENOUGH * limits.eps)
        level = torch.where(rises, root, level)
        # On a GPU, and where a turn is recorded, nobody may ask.
        if level.device.type == "cpu" and get_proxy_mode() is None and not rises.any():
            break
    return level


def _steepest_first(steep: Tensor, room: Tensor, needed: Tensor) -> Tensor:
    """How far each entry moves if the steepest go first, each as far as there is room, (n, d)."""
    steepest, order = steep.sort(1, descending=True)
    most = steepest * room.gather(1, order)
    share = (needed - (most.cumsum(1) - most)).clamp_min(0)
    moved = torch.minimum(share, most) / steepest.clamp_min(torch.finfo(steep.dtype).tiny)
    return torch.minimum(torch.zeros_like(moved).scatter(1, order, moved), room)
