"""Project onto a hyperplane within the box, in linf, l2 or l1."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from bench.core.contracts.types import Norm

MOST = 40
"""Newton's steps where the host sees when to stop; rarely more than ten are needed, and after fewer
than are the step falls short of the hyperplane."""
ENOUGH = 4
"""How many roundings of the level are no rise of it."""
HALVINGS, FINISH = 6, 4
"""Steps where the host must not ask: halvings of a bracket of the level, then Newton's steps. For
slopes of 30 decades in one row of 150,528, 9 of these 10 reach the root in float32, where Newton's
steps from 0 take 23."""


def shortest_step(x: Tensor, slope: Tensor, rise: Tensor, norm: Norm) -> Tensor:
    """Find the step d of least norm with <slope, d> = rise and x + d in the box [0, 1].

    Where no point of the box is on the hyperplane, the step leads to a corner that comes nearest to
    it. A pixel on which the hyperplane does not depend stays.

    Source: Croce and Hein 2020, section 2.2 and appendix A, https://arxiv.org/abs/1907.02044

    Args:
        x: Points in the box, (n, *input), or p points for each hyperplane, (p, n, *input).
        slope: Normals of the hyperplanes, (n, *input).
        rise: Change of <slope, x> wanted, (n,) or (p, n).
        norm: linf, l2 or l1.

    Returns:
        Steps, as `x`.

    Raises:
        ValueError: The norm is l0.
    """
    flat, needed = x.flatten(rise.dim()), rise[..., None]
    steep, way = slope.flatten(1).abs(), slope.flatten(1).sign() * needed.sign()
    # Of its own scale, or the squares of a saturated net's gradients underflow to 0.
    scale = steep.amax(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    steep, needed = steep / scale, needed.abs() / scale
    # 1 - x up, x down; several times quicker than torch.where.
    room = torch.addcmul(way.clamp_min(0), way, flat, value=-1)
    if norm == "linf":
        moved = torch.minimum(_level(steep, room, steep * room, needed), room)
    elif norm == "l2":
        reach = (room / steep).nan_to_num(0.0, posinf=0.0)
        moved = torch.minimum(_level(steep.square(), reach, steep * room, needed) * steep, room)
    elif norm == "l1":
        moved = _steepest_first(steep, room, needed)
    else:
        raise ValueError(f"there is no projection onto a hyperplane in {norm}")
    return (way * moved).view_as(x)


def _level(weight: Tensor, reach: Tensor, most: Tensor, needed: Tensor) -> Tensor:
    """Solve sum over i of weight_i min(level, reach_i) = needed for the level, (..., n, 1).

    Shapes: weight (n, d), reach and most = weight * reach (..., n, d), needed (..., n, 1). The sum
    is concave and piecewise linear in the level. So none of its tangents reaches `needed` beyond
    the root, and that of the root's own piece does so at the root, whatever led there. A step is
    two sums, where a sort of the reaches is ten times as slow.
    """
    ended, parts = torch.empty_like(reach), reach.new_empty(2, *reach.shape)

    def follow(level: Tensor) -> Tensor:
        """Return where the tangent at a level reaches `needed`; NaN or infinite if it is flat."""
        torch.le(reach, level, out=ended)
        torch.mul(ended, most, out=parts[0])
        torch.addcmul(weight, ended, weight, value=-1, out=parts[1])
        there, moving = parts.sum(-1, keepdim=True).unbind()
        return (needed - there) / moving

    # On a GPU, and where a turn is recorded, nobody may ask.
    if reach.device.type == "cpu" and get_proxy_mode() is None:
        level = _climb(torch.zeros_like(needed), follow)
    else:
        start = needed / weight.sum(-1, keepdim=True)
        level = _bracket(start, reach.amax(-1, keepdim=True), follow)
    # Nothing left to move: the level is of no consequence, but finite, or 0 times it is NaN.
    return level.nan_to_num(0.0)


def _climb(level: Tensor, follow: Callable[[Tensor], Tensor]) -> Tensor:
    """Follow tangents from 0 until no level rises.

    A row at its root stays there, so no row depends on how long another one takes.
    """
    limit = 1 + ENOUGH * torch.finfo(level.dtype).eps
    for _ in range(MOST):
        root = follow(level)
        rises = root > level * limit
        if not rises.any():
            break
        level = torch.where(rises, root, level)
    return level


def _bracket(level: Tensor, highest: Tensor, follow: Callable[[Tensor], Tensor]) -> Tensor:
    """Halve the bracket from a level below the root to one above, in logarithms; then climb.

    The tangent at the middle reaches `needed` before the middle exactly if the middle is above the
    root. Where no level is high enough, `highest` is not, either, and the last steps lead beyond.
    """
    for _ in range(HALVINGS):
        middle = (level * highest).sqrt()
        root = follow(middle)
        highest = torch.where(root < middle, middle, highest)
        level = torch.fmax(level, root)
    for _ in range(FINISH):
        level = torch.fmax(level, follow(level))
    return level


def _steepest_first(steep: Tensor, room: Tensor, needed: Tensor) -> Tensor:
    """Move the steepest entries first, each as far as there is room; lengths (..., n, d)."""
    steepest, order = steep.sort(1, descending=True)
    order = order.expand_as(room)
    most = steepest * room.gather(-1, order)
    share = (needed - (most.cumsum(-1) - most)).clamp_min(0)
    moved = torch.minimum(share, most) / steepest.clamp_min(torch.finfo(steep.dtype).tiny)
    return torch.minimum(torch.zeros_like(moved).scatter(-1, order, moved), room)
