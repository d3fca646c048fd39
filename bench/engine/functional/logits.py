"""Read predictions from logits, in one way everywhere.

The class is the one of the largest logit, compared in the type in which the model answered: float64
logits that float32 cannot tell apart are not tied, and neither are small ones whose probabilities
are. On a tie it is the lowest class. Probabilities are only shown; no verdict depends on them.
"""

import torch
from torch import Tensor

from bench.core.contracts.types import Goal


def widen(logits: Tensor) -> Tensor:
    """Convert half-precision logits to float32, which changes no value.

    Args:
        logits: Logits, (n, classes).

    Returns:
        Logits in float32 or float64.
    """
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def predict_class(logits: Tensor) -> Tensor:
    """Return the class of the largest logit along the last axis, the lowest on a tie.

    Args:
        logits: Logits, (..., classes).

    Returns:
        Classes, (...), int64.
    """
    return logits.argmax(-1)


def reaches_goal(logits: Tensor, y: Tensor, goal: Goal) -> Tensor:
    """Return whether predictions reach the goal of an attack.

    Args:
        logits: Logits, (n, classes).
        y: Class to leave (untargeted) or to reach (targeted), (n,), int64.
        goal: Goal of the attack.

    Returns:
        (n,), bool.
    """
    prediction = predict_class(logits)
    return prediction != y if goal == "untargeted" else prediction == y


def probabilities(logits: Tensor) -> Tensor:
    """Compute the softmax along the last axis in float32, or float64 for float64 logits.

    Args:
        logits: Logits, (..., classes).

    Returns:
        Probabilities, float32; finite, as torch subtracts the largest logit first.
    """
    return widen(logits).softmax(-1).float()


def is_tied(logits: Tensor) -> Tensor:
    """Return whether several classes share the largest logit exactly.

    Args:
        logits: Logits, (..., classes).

    Returns:
        (...), bool.
    """
    return (logits == logits.amax(-1, keepdim=True)).sum(-1) > 1
