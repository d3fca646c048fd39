"""Resize images at random and smooth gradients, so that examples transfer to other models.

All functions treat each row alone and follow its own random numbers.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from bench.core.contracts.input_transforms import InputTransforms

DRAWS = 4
"""Random numbers that `resize_and_pad` needs for a row."""


def resize_and_pad(x: Tensor, draws: Tensor, transforms: InputTransforms) -> Tensor:
    """Reduce images to random sizes and pad them with zeros to their own size, at random.

    With probability `diversity` a row's sides become r = floor(s + u (1 + side - s)) pixels, s the
    smallest side, by bilinear interpolation without antialiasing, and its place is uniform. One
    call of grid_sample serves rows of all sizes; it equals `interpolate` followed by `pad`, since
    points beyond the image are at least a pixel away from it.

    Source: Xie et al. 2019, section 3.2, https://arxiv.org/abs/1803.06978

    Args:
        x: Images, (n, c, h, w).
        draws: Numbers from U[0, 1), (n, DRAWS).
        transforms: Probability and smallest size.

    Returns:
        Images, (n, c, h, w); rows that are not resized are those of `x`.
    """
    chosen = draws[:, 0] < transforms.diversity
    height, width = x.shape[2:]
    rows, columns = (
        _sample_points(side, draws[:, 1], draws[:, at], transforms.smallest)
        for at, side in ((2, height), (3, width))
    )
    grid = torch.stack(
        [
            columns[:, None, :].expand(-1, height, -1),
            rows[:, :, None].expand(-1, -1, width),
        ],
        -1,
    )
    resized = functional.grid_sample(x, grid.to(x.dtype), align_corners=False)
    return torch.where(chosen[:, None, None, None], resized, x)


def _sample_points(side: int, size: Tensor, place: Tensor, smallest: float) -> Tensor:
    """Compute where each output pixel reads along one axis, in [-1, 1] inside the image, (n, side).

    `size` and `place` are draws from U[0, 1), (n,).
    """
    least = max(1, math.ceil(smallest * side))
    reduced = (least + (size.double() * (side - least + 1)).floor())[:, None]
    first = (place.double()[:, None] * (side - reduced + 1)).floor()
    pixels = torch.arange(side, device=size.device, dtype=torch.float64)
    return 2 * (pixels - first + 0.5) / reduced - 1


def smooth_gradient(gradient: Tensor, size: int) -> Tensor:
    """Convolve gradients with a Gaussian kernel, each channel alone; zeros beyond the image.

    The kernel of side 2 k + 1 has the entries exp(-(i^2 + j^2) / (2 s^2)) with s = k / sqrt(3),
    over their sum.

    Source: Dong et al. 2019, equation 7 and section 3.3.2, https://arxiv.org/abs/1904.02884

    Args:
        gradient: Gradients, (n, c, h, w).
        size: Side of the kernel in pixels, odd.

    Returns:
        Smoothed gradients, (n, c, h, w).
    """
    if size == 1:
        return gradient
    k, channels = size // 2, gradient.shape[1]
    offsets = torch.arange(-k, k + 1, dtype=torch.float64, device=gradient.device)
    line = torch.exp(-3 * (offsets / k) ** 2 / 2)
    kernel = torch.outer(line, line)
    kernel = (kernel / kernel.sum()).to(gradient).expand(channels, 1, size, size)
    return functional.conv2d(gradient, kernel, padding=k, groups=channels)
