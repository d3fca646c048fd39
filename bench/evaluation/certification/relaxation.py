"""Bound ReLU and max-pooling by lines, for linear forms that are propagated backwards.

The formulas are those of the docstring of `bounds`.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from bench.evaluation.certification.layers import Pool


def evaluate_forms(forms: Tensor, values: Tensor) -> Tensor:
    """Evaluate linear forms.

    Args:
        forms: Forms (n, forms, *shape).
        values: Values (n, *shape).

    Returns:
        Numbers (n, forms).
    """
    return (forms.flatten(2) @ values.flatten(1)[:, :, None])[:, :, 0]


class ReluLines(NamedTuple):
    """Lines below and above ReLU between its bounds, for every example and entry."""

    lower: Tensor
    """Slope of the line below, through 0."""
    upper: Tensor
    """Slope of the line above."""
    start: Tensor
    """Value of the line above at 0."""

    def select(self, example: int) -> "ReluLines":
        """Select the lines of one example.

        Args:
            example: Its row.

        Returns:
            Its lines, n = 1.
        """
        return ReluLines(*(each[example : example + 1] for each in self))

    def propagate_back(self, forms: Tensor) -> tuple[Tensor, Tensor]:
        """Propagate linear forms on the output back to the input.

        Args:
            forms: Forms (n, forms, *output).

        Returns:
            Forms on the input that lie below those given, (n, forms, *shape), and the constants to
            add to them, (n, forms).
        """
        rises, falls = forms.clamp_min(0), forms.clamp_max(0)
        constant = evaluate_forms(falls, self.start)
        return rises.mul_(self.lower[:, None]).addcmul_(falls, self.upper[:, None]), constant


def relax_relu(low: Tensor, high: Tensor) -> ReluLines:
    """Bound ReLU by lines between the bounds of its input.

    Source: Zhang et al. 2018, https://arxiv.org/abs/1811.00866, with the adaptive lower line.

    Args:
        low: Lower bounds (n, *shape).
        high: Upper bounds (n, *shape).

    Returns:
        The lines.
    """
    across = (low < 0) & (high > 0)
    on = (low >= 0).to(low.dtype)  # for a value of 0 alone both slopes are right
    upper = torch.where(across, high / torch.where(across, high - low, 1.0), on)
    lower = torch.where(across, (high >= -low).to(low.dtype), on)
    return ReluLines(lower, upper, torch.where(across, -low * upper, 0.0))


class PoolLines(NamedTuple):
    """The line below and the line above the largest of each window, both of one entry."""

    shape: tuple[int, ...]
    surest: Tensor
    """Flat index in its channel of the entry that the line below follows, slope 1."""
    first: Tensor
    """Of the entry that the line above follows."""
    slope: Tensor
    start: Tensor
    """Value of the line above where that entry is 0."""

    def select(self, example: int) -> "PoolLines":
        """Select the lines of one example.

        Args:
            example: Its row.

        Returns:
            Its lines, n = 1.
        """
        return PoolLines(self.shape, *(each[example : example + 1] for each in self[1:]))

    def propagate_back(self, forms: Tensor) -> tuple[Tensor, Tensor]:
        """Propagate linear forms on the output back to the input.

        Args:
            forms: Forms (n, forms, *output).

        Returns:
            Forms on the input that lie below those given, (n, forms, *shape), and the constants to
            add to them, (n, forms).
        """
        rises, falls = forms.clamp_min(0).flatten(3), forms.clamp_max(0).flatten(3)
        channels, high, wide = self.shape
        below = forms.new_zeros(*forms.shape[:2], channels, high * wide)
        below.scatter_add_(3, self.surest[:, None].expand_as(rises), rises)
        constant = evaluate_forms(falls, self.start)
        below.scatter_add_(3, self.first[:, None].expand_as(falls), falls * self.slope[:, None])
        return below.view(*forms.shape[:2], *self.shape), constant


def relax_pool(layer: Pool, low: Tensor, high: Tensor) -> PoolLines:
    """Bound max-pooling by lines between the bounds of its input.

    Args:
        layer: The pooling.
        low: Lower bounds (n, *shape).
        high: Upper bounds (n, *shape).

    Returns:
        The lines.
    """
    window = layer.kernel, layer.stride, layer.padding
    _, surest = functional.max_pool2d(low, *window, return_indices=True)
    top, first = (
        each.flatten(2) for each in functional.max_pool2d(high, *window, return_indices=True)
    )
    least = low.flatten(2).gather(2, first)
    there = torch.maximum(least, _second_largest(layer, high).flatten(2))  # m of `bounds`
    width = top - least
    slope = torch.where(width > 0, (top - there) / torch.where(width > 0, width, 1.0), 0.0)
    return PoolLines(layer.shape, surest.flatten(2), first, slope, there - slope * least)


def _second_largest(layer: Pool, x: Tensor) -> Tensor:
    """Return the second largest of each window, minus infinity where it has one entry."""
    (high, wide), (down, across) = layer.kernel, layer.stride
    rows, columns = layer.padding
    padded = functional.pad(x, (columns, columns, rows, rows), value=-torch.inf)
    windows = padded.unfold(2, high, down).unfold(3, wide, across).flatten(4)
    if windows.shape[4] == 1:
        return torch.full_like(windows[..., 0], -torch.inf)
    return windows.topk(2, dim=4).values[..., 1]
