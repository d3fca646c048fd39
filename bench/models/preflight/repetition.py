"""Ask a model a second time in few calls: alone, in another order and with a gradient.

A sound model answers alike in all of them, so that one round shows that it is neither random nor
dependent on the batch or on the gradient mode. Only of a model that does not, the checks of
`logit_checks` and `gradient_checks` find out by further calls which of these it is.
"""

import torch
from torch import Tensor, nn

from bench.engine.functional.gradients import PassResult, gradient_pass
from bench.engine.functional.logits import widen
from bench.engine.functional.losses import make_objective
from bench.engine.model_state import InputWriteError, call_model
from bench.models.preflight.logit_checks import RANDOM, logit_scale


def repeat_calls(
    model: nn.Module, x: Tensor, logits: Tensor, with_gradient: bool
) -> PassResult | None:
    """Ask about each image alone, and about all of them in the reverse order.

    Args:
        model: The model.
        x: Images (n, c, h, w).
        logits: Their logits (n, classes), computed together and without a gradient.
        with_gradient: Whether the second call computes a gradient, that of the cross-entropy
            towards the least likely class.

    Returns:
        The second call in the order of `x`, its gradient empty unless one was asked for; None if
        an answer differs by more than RANDOM of the largest logit, or the model raised.

    Raises:
        InputWriteError: The model writes into the images that it is given.
    """
    turned = x.flip(0)
    try:
        with torch.no_grad():
            alone = widen(torch.cat([call_model(model, row[None]) for row in x]))
        if with_gradient:
            seen = call_reversed(model, turned, logits.argmin(1).flip(0))
        else:
            seen = _call_without_gradient(model, turned)
    except (KeyboardInterrupt, InputWriteError):
        raise
    except BaseException:  # foreign code may raise anything; the checks say what it was
        return None
    if not torch.equal(turned, x.flip(0)):
        raise InputWriteError("the model writes into the images that it is shown")
    allowed = RANDOM * logit_scale(logits)
    for other in (alone, seen.logits):
        same = other.shape == logits.shape
        if not (same and float((other - logits).abs().max()) <= allowed):  # true for NaN, too
            return None
    return seen


def call_reversed(model: nn.Module, turned: Tensor, y: Tensor) -> PassResult:
    """Call the model on images in the reverse order, with a gradient.

    Args:
        model: The model.
        turned: Images (n, c, h, w), the last one first.
        y: Least likely class of each, (n,).

    Returns:
        The pass of the cross-entropy towards `y`, the first image first.

    Raises:
        InputWriteError: The model writes into the images that it is given.
    """
    objective = make_objective("cross-entropy", "untargeted")
    return PassResult(*(each.flip(0) for each in gradient_pass(model, objective, turned, y, y)))


def _call_without_gradient(model: nn.Module, turned: Tensor) -> PassResult:
    """Call the model likewise; the answer has no gradient."""
    with torch.no_grad():
        answer = widen(call_model(model, turned)).flip(0)
    return PassResult(answer, answer.new_empty(0), answer.new_empty(0))
