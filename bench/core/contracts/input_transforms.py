"""Input transformations: what a gradient is taken at, so that examples transfer to other models."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le
from pydantic import AfterValidator

from bench.core.contracts.parameters import Count


def _check_kernel(size: int) -> int:
    """Refuse a kernel without a centre."""
    if size % 2 == 0 and size:
        raise ValueError("expected an odd size, or 0 for none")
    return size


@dataclass(frozen=True, kw_only=True)
class InputTransforms:
    """Transformations of the iterate, or of its gradient, at every step of an iterative attack.

    An iterate itself still decides whether the attack has succeeded.
    """

    diversity: Annotated[float, Ge(0), Le(1)] = 0.0
    """Probability that an image is reduced to a random size and padded with zeros at random, the
    same for all steps. Source: Xie et al. 2019, section 3.2, https://arxiv.org/abs/1803.06978"""
    smallest: Annotated[float, Ge(0.5), Le(1)] = 0.9
    """Least share of the side that an image is reduced to; the paper's 299 of 330 pixels."""
    translation: Annotated[int, Ge(0), AfterValidator(_check_kernel)] = 0
    """Side in pixels of the Gaussian kernel that the gradient is convolved with, which stands for
    gradients at translated images; 0 for none. Source: Dong et al. 2019, equation 7,
    https://arxiv.org/abs/1904.02884"""
    scales: Count = 1
    """Number m of copies x / 2^i, i < m, over which the gradient is averaged.
    Source: Lin et al. 2020, equation 7, https://arxiv.org/abs/1908.06281"""

    @property
    def forwards(self) -> int:
        """Forward passes in place of one: of the copies, and of the iterate if none is itself."""
        return self.scales + (self.diversity > 0)

    @property
    def backwards(self) -> int:
        """Backward passes in place of one: of the copies."""
        return self.scales
