"""Norms and distances of the threat models, pure and out of place.

Images are (n, *input) in the box [0, 1]; per-row numbers such as eps or a distance are (n,).
"""

import torch
from torch import Tensor

from bench.core.contracts.types import Norm

ABSOLUTE, RELATIVE = 1e-6, 1e-5
"""Tolerance by which a distance may exceed eps: float32 rounding, no more."""
MEASURED_AT_ONCE = 64
"""Rows measured in one piece, so that float64 does not double the memory."""


DUAL: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}
"""Dual norm: a gradient's is the slope of a linear function per unit of distance. l0 has none."""


def per_row(value: Tensor, like: Tensor) -> Tensor:
    """Reshape per-row numbers so that they broadcast over images.

    Args:
        value: One number per row, (n,).
        like: Tensor whose rows they belong to, (n, *input).

    Returns:
        `value` as (n, 1, ..., 1), with as many axes as `like`.
    """
    return value.view(-1, *[1] * (like.dim() - 1))


def norm_of(delta: Tensor, norm: Norm) -> Tensor:
    """Compute the norm of each row; l0 counts the entries that are not 0.

    Args:
        delta: Perturbations, (n, *input).
        norm: The norm.

    Returns:
        Norms, (n,), in the dtype of `delta`.

    Raises:
        ValueError: It is no norm but a family of images.
    """
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
    if norm == "l0":
        return (flat != 0).sum(1).to(delta.dtype)
    raise ValueError(f"expected a norm, got '{norm}', a family of images, which has no distance")


def largest_magnitude(values: Tensor) -> Tensor:
    """Compute the largest magnitude in each row, which is finite only where every entry is.

    Args:
        values: Rows, (n, *input).

    Returns:
        Magnitudes, (n,), NaN where an entry is; as `norm_of` with "linf", to the bit.
    """
    flat = values.flatten(1)
    if flat.device.type != "cuda":
        return flat.abs().amax(1)
    # One kernel in place of two; on a processor it takes twelve times as long.
    largest: Tensor = torch.linalg.vector_norm(flat, torch.inf, dim=1)
    return largest


def distance(x: Tensor, x0: Tensor, norm: Norm) -> Tensor:
    """Compute the distance between the rows of two batches.

    Args:
        x: Images, (n, *input).
        x0: Images, (n, *input).
        norm: The norm.

    Returns:
        Distances, (n,).
    """
    return norm_of(x - x0, norm)


def distance_float64(x: Tensor, x0: Tensor, norm: Norm) -> Tensor:
    """Compute distances in float64, as the check of returned images needs them.

    A sum over many entries in float32 may be off by more than the tolerance of the ball.

    Args:
        x: Images, (n, *input).
        x0: Clean images, (n, *input).
        norm: The norm.

    Returns:
        Distances, (n,), float64.
    """
    pieces = zip(x.split(MEASURED_AT_ONCE), x0.split(MEASURED_AT_ONCE), strict=True)
    return torch.cat([distance(each.double(), clean.double(), norm) for each, clean in pieces])


def smallest_normal(x: Tensor) -> float:
    """Return the smallest positive normal number of a tensor's dtype, a lower bound for divisors.

    Args:
        x: Floating-point tensor.

    Returns:
        `torch.finfo(x.dtype).tiny`.
    """
    return torch.finfo(x.dtype).tiny
