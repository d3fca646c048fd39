"""Forward and backward passes: logits, loss and input gradient of a batch."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.engine.functional.logits import widen
from bench.engine.functional.losses import Objective
from bench.engine.functional.norms import norm_of, per_row
from bench.engine.model_state import call_model
from bench.engine.source_ensemble import SourceEnsemble


class PassResult(NamedTuple):
    """Result of one pass over a batch of images."""

    logits: Tensor
    loss: Tensor
    """(n,), what is ascended."""
    gradient: Tensor
    """Of each row's loss with respect to that row, as the images."""


def gradient_pass(
    model: nn.Module,
    loss: Objective,
    x: Tensor,
    y: Tensor,
    label: Tensor,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> PassResult:
    """Compute logits, the loss of each row and its gradient with respect to the images.

    The gradient is that of the sum, not the mean, so that each row's is its own. A model whose
    output does not depend on x has a gradient of zeros.

    Args:
        model: The model.
        loss: Objective: (logits, y, label) -> loss to ascend, (n,).
        x: Images, (n, c, h, w), in [0, 1].
        y: Class to leave or to reach, (n,).
        label: True labels, (n,).
        transform: Differentiable function of the images, which the model sees in their place.

    Returns:
        Logits, loss (n,) and gradient (n, c, h, w) with respect to `x`.

    Raises:
        InputWriteError: The model writes into its input.
    """
    if isinstance(model, SourceEnsemble) and model.combine != "logits":
        return _average_passes(model, loss, x, y, label, transform)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = widen(call_model(model, x if transform is None else transform(x)))
        values = loss(logits, y, label)
        if not values.requires_grad:
            return PassResult(logits, values, torch.zeros_like(x))
        (gradient,) = torch.autograd.grad(
            values, x, torch.ones_like(values), allow_unused=True, materialize_grads=True
        )
    return PassResult(logits.detach(), values.detach(), gradient)


def _average_passes(
    ensemble: SourceEnsemble,
    loss: Objective,
    x: Tensor,
    y: Tensor,
    label: Tensor,
    transform: Callable[[Tensor], Tensor] | None,
) -> PassResult:
    """Average losses and gradients of the members' own passes."""
    passes = [gradient_pass(each, loss, x, y, label, transform) for each in ensemble.members]
    gradients = [each.gradient for each in passes]
    if ensemble.combine == "gradients":
        sizes = [per_row(norm_of(each, "l1"), each) for each in gradients]
        gradients = [g / s.where(s > 0, 1) for g, s in zip(gradients, sizes, strict=True)]
    return PassResult(
        ensemble.average([each.logits for each in passes]),
        ensemble.average([each.loss for each in passes]),
        ensemble.average(gradients),
    )


def forward_pass(
    model: nn.Module, loss: Objective, x: Tensor, y: Tensor, label: Tensor
) -> PassResult:
    """Compute logits and the loss of each row under no_grad.

    Args:
        model: The model.
        loss: Objective: (logits, y, label) -> loss to ascend, (n,).
        x: Images, (n, c, h, w), in [0, 1].
        y: Class to leave or to reach, (n,).
        label: True labels, (n,).

    Returns:
        Logits, loss (n,) and an empty gradient.

    Raises:
        InputWriteError: The model writes into its input.
    """
    with torch.no_grad():
        logits = widen(call_model(model, x))
        return PassResult(logits, loss(logits, y, label), x.new_empty(0))
