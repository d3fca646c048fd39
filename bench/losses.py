"""The per-example losses that attacks ascend, all of shape (n,) from logits (n, classes)."""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.contracts import Goal, Loss


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """logsumexp(z) - z_y, natural logarithm."""
    return torch.nn.functional.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """logsumexp over i != y of z_i, minus z_y: cross-entropy without its saturation.

    Cross-entropy is log(1 + exp(margin)), a rising function of it: both have the same gradient
    direction, but this one keeps it in float32 where softmax rounds to 1 (law L22).
    """
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.logsumexp(1) - logits.gather(1, y[:, None])[:, 0]


LOSSES: dict[Loss, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": cross_entropy,
    "margin": margin,
}


def to_ascend(loss: Loss, goal: Goal) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss as the attacker ascends it: away from y, or, when targeted, towards it."""
    towards = LOSSES[loss]
    if goal == "untargeted":
        return towards
    return lambda logits, target: -towards(logits, target)
