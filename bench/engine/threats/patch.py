"""Square patches: any pixels in [0, 1] inside a square, the clean image to the bit outside it.

The level is the patch's share of the image's area; its side is the nearest whole number of pixels,
at least 1 and at most the shorter side of the image. The attack declares where the patch is.
Source: Brown et al. 2017, https://arxiv.org/abs/1712.09665
Differs from the paper: a square that is neither rotated nor scaled, and one patch per image.
"""

import math

import torch
from torch import Tensor

from bench.core.contracts.threat import ThreatFamily, VerifierInput


def patch_side(level: float, height: int, width: int) -> int:
    """Compute the side of a patch.

    >>> patch_side(0.05, 28, 28), patch_side(1e-6, 28, 28)
    (6, 1)

    Args:
        level: Share of the image's area, in (0, 1].
        height: Rows of the image.
        width: Columns of the image.

    Returns:
        Pixels.
    """
    return min(max(round(math.sqrt(level * height * width)), 1), height, width)


def make_mask(x: Tensor, corners: Tensor, side: int) -> Tensor:
    """Mark the pixels of patches.

    Args:
        x: Images, (n, c, h, w), for shape and device.
        corners: Row and column of each patch's upper left pixel, (n, 2).
        side: Side in pixels.

    Returns:
        Bool, (n, 1, h, w).
    """
    h, w = x.shape[2:]
    top, left = (column[:, None].to(x.device) for column in corners.long().unbind(1))
    rows, columns = torch.arange(h, device=x.device), torch.arange(w, device=x.device)
    inside = (rows >= top) & (rows < top + side)
    across = (columns >= left) & (columns < left + side)
    return (inside[:, :, None] & across[:, None, :])[:, None]


def verify(given: VerifierInput) -> list[str]:
    """Compare the pixels outside the declared patch bit by bit.

    Args:
        given: Images, the upper left pixels of their patches, and level.

    Returns:
        For each image the violation; "" if there is none.
    """
    h, w = given.x.shape[2:]
    side = patch_side(given.level, h, w)
    corners = given.parameters
    allowed = torch.tensor([h - side, w - side])
    placed = (corners == corners.round()) & (corners >= 0) & (corners <= allowed)
    mask = make_mask(given.x, corners.nan_to_num().clamp(-1, max(h, w)), side)
    changed = ((given.x_adv != given.x) & ~mask).any(1).flatten(1).sum(1).tolist()
    violations = []
    for values, fits, count in zip(corners.tolist(), placed.all(1).tolist(), changed, strict=True):
        if not fits:
            text = f"patch of {side} x {side} pixels at {values}, allowed 0 to {allowed.tolist()}"
            violations.append(text)
        else:
            outside = f"outside the patch ({describe(values)}, {side} x {side} pixels)"
            violations.append(f"{count} pixels changed {outside}, allowed 0" if count else "")
    return violations


def describe(parameters: list[float]) -> str:
    """Describe where a patch is.

    >>> describe([3.0, 20.0])
    'row 3, column 20'

    Args:
        parameters: Row and column of its upper left pixel.

    Returns:
        Text.
    """
    row, column = parameters
    return f"row {row:g}, column {column:g}"


def find_level_problem(level: float) -> str:
    """Check a level.

    Args:
        level: Above or below 0.

    Returns:
        What was expected; "" if the level is allowed.
    """
    if 0 < level <= 1:
        return ""
    return "expected a share of the image's area in [0, 1] for patch"


THREAT = ThreatFamily(
    summary="any pixels in a square, none outside it",
    source="Brown et al. 2017",
    level="share of the image's area",
    example_levels=(0.05, 0.2),
    find_level_problem=find_level_problem,
    verify=verify,
    describe=describe,
)
