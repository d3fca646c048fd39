"""Windows of the Square Attack: their sides and places, masks of them, and eta, a hill by a valley.

Source: Andriushchenko et al. 2020, algorithms 2 and 3, https://arxiv.org/abs/1912.00049; schedule
and eta as in the code of AutoAttack, https://github.com/fra31/auto-attack.
"""

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from bench.core.contracts.types import Norm

HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Proposals, counted from 0, after which the windows' area is halved, for any number of steps."""
POWER = {"l2": 2, "l1": 1}
"""What the norm raises a difference to before it adds."""


def window_sides(p: float, height: int, width: int, norm: Norm) -> list[int]:
    """Compute the windows' side after 0, 1, ..., 9 halvings of p.

    It is round(sqrt(p * h * w)), no more than the image holds; for eta odd and, where the image
    holds it, at least 3.

    Args:
        p: Share of the image that the first windows cover.
        height: Height of the images.
        width: Width of the images.
        norm: Norm of the ball.

    Returns:
        Sides in pixels.
    """
    most = min(height, width)
    wanted = [round(math.sqrt(p * height * width / 2**i)) for i in range(len(HALVED_AFTER) + 1)]
    if norm == "linf":
        return [min(max(side, 1), most) for side in wanted]
    return [min(max(side, 3) // 2 * 2 + 1, most - 1 + most % 2) for side in wanted]


class Tables(NamedTuple):
    """What depends on p, the images' shape and the norm alone, on the model's device.

    A step that is replayed on a GPU must not fetch anything from the host.
    """

    halvings: Tensor
    """Of p at each proposal until there are no more, (8002,), int64."""
    side: Tensor
    """By halvings, (10,), int64."""
    size: Tensor
    """Height and width, each plus 1, (2,), int64."""
    pixels: Tensor
    """Numbers of the rows or the columns, whichever are more, int64."""
    eta: Tensor
    """By halvings and turn, in a margin of zeros, (10, 2, most + 2, most + 2), most the first side;
    all zeros in linf, which needs none."""


@cache
def make_tables(
    p: float, height: int, width: int, norm: Norm, dtype: torch.dtype, device: torch.device
) -> Tables:
    """Compute the tables of the windows, once for each combination of arguments.

    Args:
        p: Share of the image that the first windows cover.
        height: Height of the images.
        width: Width of the images.
        norm: Norm of the ball.
        dtype: Dtype of the images.
        device: Device of the images.

    Returns:
        The tables.
    """
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
        size=torch.tensor([height + 1, width + 1]).to(device),
        pixels=torch.arange(max(height, width)).to(device),
        eta=etas.to(device, dtype),
    )


def locate_windows(u: Tensor, side: Tensor, known: Tables) -> Tensor:
    """Place square windows uniformly and number the pixels within them.

    Args:
        u: Draws from U[0, 1), (n, m, 2).
        side: Side of each row's windows, (n,).
        known: Tables of the windows.

    Returns:
        Position of each row and column in its window, (n, m, 2, longer side): 0 to side - 1 inside.
    """
    first = (u * (known.size - side[:, None, None])).long()
    return known.pixels - first[..., None]


def window_masks(at: Tensor, side: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mask the rows and columns of windows.

    Multiplying by both is several times faster than torch.where.

    Args:
        at: Positions, as `locate_windows` returns.
        side: Side of each row's windows, (n,).
        like: Tensor whose dtype and size the masks have.

    Returns:
        1 inside and 0 outside, by rows (n, m, h) and by columns (n, m, w).
    """
    inside = ((at >= 0) & (at < side[:, None, None, None])).to(like.dtype)
    return inside[:, :, 0, : like.shape[2]], inside[:, :, 1, : like.shape[3]]


def draw_signs(u: Tensor, like: Tensor) -> Tensor:
    """Convert draws to signs, each equally likely.

    Args:
        u: Draws from U[0, 1).
        like: Tensor whose dtype the result has.

    Returns:
        1 or -1, as `u`.
    """
    return 1 - 2 * (u < 0.5).to(like.dtype)


def by_channel(values: Tensor) -> Tensor:
    """Reshape per-channel numbers so that they broadcast over pixels.

    Args:
        values: (n, c).

    Returns:
        (n, c, 1, 1).
    """
    return values[..., None, None]


def make_hill(height: int, width: int, norm: Norm) -> Tensor:
    """Build rings around the middle, of norm 1.

    At a distance of d rows or columns, whichever are more, the value is the sum of (m + 1)^-2, in
    l1 (m + 1)^-4, over m from d to half the longer side.

    Args:
        height: Height of the images.
        width: Width of the images.
        norm: l2 or l1.

    Returns:
        (height, width), float64.
    """
    rows = (torch.arange(height) - height // 2).abs()
    columns = (torch.arange(width) - width // 2).abs()
    numbers = torch.arange(1, max(height, width) // 2 + 2, dtype=torch.float64)
    terms = numbers ** (-4 / POWER[norm])
    rings = terms.flip(0).cumsum(0).flip(0)[torch.maximum(rows[:, None], columns)]
    return rings / norm_of_all(rings, norm)


def make_eta(side: int, norm: Norm) -> Tensor:
    """Build a hill above a valley, of norm 1.

    Args:
        side: Side in pixels.
        norm: l2 or l1.

    Returns:
        (side, side), float64.
    """
    upper = side // 2
    both = torch.cat([make_hill(upper, side, norm), -make_hill(side - upper, side, norm)])
    return both / norm_of_all(both, norm)


@cache
def make_tile(side: int, norm: Norm, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Build the tile of a start once: each later start would copy it to a GPU again.

    Args:
        side: Side in pixels.
        norm: l2 or l1.
        dtype: Dtype of the images.
        device: Device of the images.

    Returns:
        (side, side).
    """
    return make_eta(side, norm).to(device, dtype)


def norm_of_all(values: Tensor, norm: Norm) -> Tensor:
    """Compute the norm of all values together.

    Args:
        values: Any tensor; the upper half of one pixel has no values.
        norm: l2 or l1.

    Returns:
        A scalar; 0 of no values.
    """
    return values.abs().pow(POWER[norm]).sum().pow(1 / POWER[norm])


def place_eta(etas: Tensor, number: Tensor, at: Tensor, like: Tensor) -> Tensor:
    """Place an eta in the window of each row, with 0 elsewhere.

    Args:
        etas: All etas in margins of zeros, (10, 2, edge, edge).
        number: Index of each row's eta, (n,).
        at: Positions in the window, (n, 2, longer side).
        like: Tensor of the images' size.

    Returns:
        (n, 1, h, w).
    """
    edge = etas.shape[-1]
    row, column = (at + 1).clamp(0, edge - 1).unbind(1)
    row, column = row[:, : like.shape[2]], column[:, : like.shape[3]]
    where = ((number[:, None] * edge + row) * edge)[:, :, None] + column[:, None]  # (n, h, w)
    return etas.flatten().index_select(0, where.flatten()).view(where.shape)[:, None]
