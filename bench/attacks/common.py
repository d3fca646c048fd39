"""One file per attack, each ending in an ATTACK record; a library enters through one adapter file.

An attack ascends a loss and knows nothing of files, timing, normalisation or devices. The engine
drives its rule; the harness verifies and judges what it returns.
"""

from typing import Annotated

import torch
from annotated_types import Gt, Le
from torch import Tensor

from bench.core.contracts.types import Norm
from bench.engine.functional import norms, projections


def reach_caveats(alpha: float, steps: int, eps: float) -> tuple[str, ...]:
    """The caveat of an iterative attack whose steps cannot cross its ball; empty if they can."""
    if alpha * steps >= eps * (1 - 1e-6):
        return ()
    return (
        f"alpha * steps = {alpha * steps:.4g} does not reach eps = {eps:.4g}, "
        "so part of the ball is out of the attack's reach.",
    )


def anneal(first: float, last: float, k: Tensor, steps: int) -> Tensor:
    """What falls from `first` at step 0 to `last` after `steps` along half a cosine; k (n,).

    Source: Loshchilov and Hutter 2017, equation 5, https://arxiv.org/abs/1608.03983
    """
    return last + (first - last) * (1 + torch.cos(torch.pi * k / steps)) / 2


def update_nearest(
    x: Tensor, far: Tensor, fooled: Tensor, nearest: Tensor, best: Tensor
) -> tuple[Tensor, Tensor]:
    """Distance (n,) and image (n, *input) of the nearest adversarial iterate of a search, after
    iterates `x` at distances `far` (n,); before them, `nearest` (infinite if none) and `best`."""
    nearer = fooled & (far < nearest)
    return torch.where(nearer, far, nearest), torch.where(norms.per_row(nearer, x), x, best)


Share = Annotated[float, Gt(0), Le(1)]


def ascend(x: Tensor, gradient: Tensor, alpha: Tensor, norm: Norm, l1_share: float) -> Tensor:
    """x after a step of length `alpha` (n,) in the steepest direction, in l1 spread over a share of
    the pixels; x and gradient (n, *input)."""
    if norm == "l1":
        return x + projections.steepest_sparse_step(gradient, x, alpha, l1_share)
    return x + norms.per_row(alpha, x) * projections.steepest_direction(gradient, norm)


PROJECTION: dict[Norm, str] = {
    "linf": "ball and box commute",
    "l2": "ball, then box",
    "l1": "nearest point of ball and box",
    "l0": "ball, then box",
}

ONE_IMAGE = "pgd"
"""The attack of `bench attack` where none is named."""
