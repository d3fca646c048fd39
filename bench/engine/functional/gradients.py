"""Forward and backward passes: logits, loss and input gradient of a batch."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.engine.functional.logits import widen
from bench.engine.functional.losses import Objective
from bench.engine.model_state import call_model


class PassResult(NamedTuple):
    """One pass over a batch of images, forward and back."""

    logits: Tensor
    loss: Tensor
    """(n,), what is ascended."""
    gradient: Tensor
    """Of each row's loss with respect to that row, as the images."""


def gradient_pass(
    model: nn.Module, loss: Objective, x: Tensor, y: Tensor, label: Tensor
) -> PassResult:
    """Logits at x, the loss of each row, and its gradient with respect to x alone.

    The gradient is that of the sum, not the mean, so that each row's is its own. A model whose
    output does not depend on x has a gradient of zeros.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = widen(call_model(model, x))
        values = loss(logits, y, label)
        if not values.requires_grad:
            return PassResult(logits, values, torch.zeros_like(x))
        (gradient,) = torch.autograd.grad(
            values.sum(), x, allow_unused=True, materialize_grads=True
        )
    return PassResult(logits.detach(), values.detach(), gradient)


def forward_pass(
    model: nn.Module, loss: Objective, x: Tensor, y: Tensor, label: Tensor
) -> PassResult:
    """As `look`, without a gradient, which is empty."""
    with torch.no_grad():
        logits = widen(call_model(model, x))
        return PassResult(logits, loss(logits, y, label), x.new_empty(0))
