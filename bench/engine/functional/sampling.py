"""Random points of balls."""

import torch
from torch import Tensor

from bench.core.contracts.types import Norm
from bench.core.rng import Noise
from bench.engine.functional.norms import per_row
from bench.engine.functional.projections import keep_largest, steepest_direction


def random_in_ball(like: Tensor, eps: Tensor, norm: Norm, noise: Noise) -> Tensor:
    """Draw a random offset within the ball for each row.

    linf, l2 and l1: uniform in the ball. l0: floor(eps) uniformly chosen entries, each moved by
    U(-1, 1).

    Source: l2 Voelker et al. 2017 (direction of a Gaussian, radius U^(1/d)); l1 Calafiore,
    Dabbene and Tempo 1998 (normalised exponential gaps), https://doi.org/10.1109/81.735436

    Args:
        like: Tensor whose shape, dtype and device the offsets have, (n, *input).
        eps: Radii, (n,), in the unit of the norm.
        norm: Norm of the ball.
        noise: Random numbers keyed by example and restart.

    Returns:
        Offsets, as `like`.
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
