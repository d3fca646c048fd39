"""Per-example losses that attacks ascend: logits (n, classes) to (n,)."""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.core.contracts.types import Goal, Loss


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Compute logsumexp(z) - z_y, with the natural logarithm.

    Args:
        logits: Logits, (n, classes).
        y: Class to leave, (n,), int64.

    Returns:
        Losses, (n,).
    """
    return torch.nn.functional.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Compute logsumexp over i != y of z_i, minus z_y: cross-entropy without its saturation.

    Cross-entropy is log(1 + exp(margin)), an increasing function of it: both have the same gradient
    direction, but this one keeps it in float32 where softmax rounds to 1.

    Args:
        logits: Logits, (n, classes).
        y: Class to leave, (n,), int64.

    Returns:
        Losses, (n,).
    """
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.logsumexp(1) - logits.gather(1, y[:, None])[:, 0]


def label_and_target(logits: Tensor, target: Tensor, label: Tensor) -> Tensor:
    """Compute z_label - z_target, the cross-entropy of the target minus that of the label.

    The two logsumexp cancel exactly, so nothing saturates.

    Args:
        logits: Logits, (n, classes).
        target: Class to reach, (n,), int64.
        label: True labels, (n,), int64.

    Returns:
        Losses, (n,).
    """
    own = logits.gather(1, label[:, None]) - logits.gather(1, target[:, None])
    return own[:, 0]


def logit_difference(logits: Tensor, y: Tensor) -> Tensor:
    """Compute max over i != y of z_i, minus z_y: above 0 exactly where y is not predicted.

    Source: Carlini and Wagner 2017, f_6, https://arxiv.org/abs/1608.04644

    Args:
        logits: Logits, (n, classes).
        y: Class to leave, (n,), int64.

    Returns:
        Losses, (n,).
    """
    return -_lead(logits, y)


def probability_margin(logits: Tensor, y: Tensor) -> Tensor:
    """Compute max over i != y of p_i, minus p_y, plus 1, with p the softmax of the logits.

    With m = z_y - logsumexp over i != y of z_i and q_i the softmax over the other classes, it is
    sigmoid(-m) (1 + max q_i): equal, but in float32 neither value nor gradient is lost where p_y
    rounds to 1. The constant 1, which changes no gradient, is what saves the value.

    Source: Xie et al. 2025 (PMA), https://arxiv.org/abs/2411.15210

    Args:
        logits: Logits, (n, classes).
        y: Class to leave, (n,), int64.

    Returns:
        Losses, (n,), in [0, 2]; above 1 where y is not predicted.
    """
    others = logits.scatter(1, y[:, None], -torch.inf)
    total = others.logsumexp(1)
    largest = (others.amax(1) - total).exp()
    return (total - logits.gather(1, y[:, None])[:, 0]).sigmoid() * (1 + largest)


TINY = 1e-12
"""Keeps the ratio of logits finite where they are all equal."""


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Compute the difference of logits ratio, -(z_y - max over i != y of z_i) / (z_(1) - z_(3)).

    z_(k) is the k-th largest logit, so the loss is invariant to scale and shift of the logits.
    Needs three classes.

    Source: Croce and Hein 2020, equation 6, https://arxiv.org/abs/2003.01690

    Args:
        logits: Logits, (n, classes).
        y: Class to leave, (n,), int64.

    Returns:
        Losses, (n,).
    """
    first, _, third = logits.topk(3, dim=1).values.unbind(1)
    return -_lead(logits, y) / (first - third + TINY)


def dlr_targeted(logits: Tensor, target: Tensor, label: Tensor) -> Tensor:
    """Compute -(z_label - z_target) / (z_(1) - (z_(3) + z_(4)) / 2), to be ascended.

    Needs four classes.

    Source: Croce and Hein 2020, equation 7, https://arxiv.org/abs/2003.01690

    Args:
        logits: Logits, (n, classes).
        target: Class to reach, (n,), int64.
        label: True labels, (n,), int64.

    Returns:
        Losses, (n,).
    """
    first, _, third, fourth = logits.topk(4, dim=1).values.unbind(1)
    gap = label_and_target(logits, target, label)
    return -gap / (first - (third + fourth) / 2 + TINY)


def _lead(logits: Tensor, y: Tensor) -> Tensor:
    """Compute z_y minus the largest other logit, (n,)."""
    others = logits.scatter(1, y[:, None], -torch.inf)
    return logits.gather(1, y[:, None])[:, 0] - others.amax(1)


LOSSES: dict[Loss, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": cross_entropy,
    "margin": margin,
    "logit-difference": logit_difference,
    "dlr": dlr,
    "pma": probability_margin,
}
Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits (n, classes), class to leave or reach (n,), label (n,)) -> what is ascended, (n,)."""


def make_objective(loss: Loss, goal: Goal) -> Objective:
    """Return the loss as the attacker ascends it: away from the label or, targeted, to the target.

    "label-and-target" without a target is cross-entropy.

    Args:
        loss: Name of the loss.
        goal: Goal of the attack.

    Returns:
        (logits, class to leave or reach, label) -> what is ascended, (n,).
    """
    if loss == "label-and-target" and goal == "targeted":
        return lambda logits, y, label: -label_and_target(logits, y, label)
    if loss == "dlr" and goal == "targeted":
        return dlr_targeted
    towards = LOSSES.get(loss, cross_entropy)
    if goal == "untargeted":
        return lambda logits, y, label: towards(logits, y)
    return lambda logits, y, label: -towards(logits, y)


def min_classes(loss: str, goal: Goal) -> int:
    """Return the smallest number of classes for which a loss is defined.

    Args:
        loss: Name of the loss.
        goal: Goal of the attack.

    Returns:
        2, 3 or 4.
    """
    if loss != "dlr":
        return 2
    return 4 if goal == "targeted" else 3


def mask_nonfinite(loss: Tensor) -> Tensor:
    """Replace losses that are not finite by NaN, as traces store them.

    Args:
        loss: Losses, of any shape.

    Returns:
        Losses of the same shape.
    """
    return torch.where(loss.isfinite(), loss, torch.nan)
