"""The per-example losses that attacks ascend, all of shape (n,) from logits (n, classes)."""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.core.contracts.types import Goal, Loss


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """logsumexp(z) - z_y, natural logarithm."""
    return torch.nn.functional.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """logsumexp over i != y of z_i, minus z_y: cross-entropy without its saturation.

    Cross-entropy is log(1 + exp(margin)), a rising function of it: both have the same gradient
    direction, but this one keeps it in float32 where softmax rounds to 1.
    """
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.logsumexp(1) - logits.gather(1, y[:, None])[:, 0]


def label_and_target(logits: Tensor, target: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy of the target minus that of the label, which is z_label - z_target exactly:
    the two logsumexp cancel, and so nothing saturates."""
    own = logits.gather(1, label[:, None]) - logits.gather(1, target[:, None])
    return own[:, 0]


def logit_difference(logits: Tensor, y: Tensor) -> Tensor:
    """max over i != y of z_i, minus z_y: above 0 exactly where y is not predicted.

    Source: Carlini and Wagner 2017, f_6, https://arxiv.org/abs/1608.04644
    """
    return -_lead(logits, y)


TINY = 1e-12
"""Keeps the ratio of logits finite where they are all equal."""


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """-(z_y - max over i != y of z_i) / (z_(1) - z_(3)), z_(k) the k-th largest: the same whatever
    all logits are multiplied with or raised by. Needs three classes.

    Source: Croce and Hein 2020, equation 6, https://arxiv.org/abs/2003.01690
    """
    first, _, third = logits.topk(3, dim=1).values.unbind(1)
    return -_lead(logits, y) / (first - third + TINY)


def dlr_targeted(logits: Tensor, target: Tensor, label: Tensor) -> Tensor:
    """-(z_label - z_target) / (z_(1) - (z_(3) + z_(4)) / 2), to be ascended. Needs four classes.

    Source: Croce and Hein 2020, equation 7.
    """
    first, _, third, fourth = logits.topk(4, dim=1).values.unbind(1)
    gap = label_and_target(logits, target, label)
    return -gap / (first - (third + fourth) / 2 + TINY)


def _lead(logits: Tensor, y: Tensor) -> Tensor:
    """z_y less the largest other logit: how far y is ahead."""
    others = logits.scatter(1, y[:, None], -torch.inf)
    return logits.gather(1, y[:, None])[:, 0] - others.amax(1)


LOSSES: dict[Loss, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": cross_entropy,
    "margin": margin,
    "logit-difference": logit_difference,
    "dlr": dlr,
}
Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits (n, classes), class to leave or reach (n,), label (n,)) -> what is ascended, (n,)."""


def make_objective(loss: Loss, goal: Goal) -> Objective:
    """The loss as the attacker ascends it: away from the label, or, when targeted, to the target.

    "label-and-target" without a target is cross-entropy.
    """
    if loss == "label-and-target" and goal == "targeted":
        return lambda logits, y, label: -label_and_target(logits, y, label)
    if loss == "dlr" and goal == "targeted":
        return dlr_targeted
    towards = LOSSES.get(loss, cross_entropy)
    sign = 1 if goal == "untargeted" else -1
    return lambda logits, y, label: sign * towards(logits, y)


def min_classes(loss: str, goal: Goal) -> int:
    """The fewest classes for which the loss is defined."""
    if loss != "dlr":
        return 2
    return 4 if goal == "targeted" else 3
