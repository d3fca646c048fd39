"""Whether two nets agree: the same logits and the same gradients, to what rounding leaves.

Asked when a copy of a model is made (`bench.engine.acceleration.accelerate`), and again after it
has led an attack (`bench.evaluation.crafting`). A net is looked at as attacks look at it, with a
gradient or without one: a forward may answer one way here and another way there.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.core.contracts.types import Precision
from bench.engine.functional.gradients import PassResult, forward_pass, gradient_pass
from bench.engine.functional.losses import make_objective

CLOSE: dict[Precision, tuple[float, float]] = {
    "float32": (1e-3, 0.999),
    "tf32": (2e-2, 0.9),
    "bfloat16": (1e-1, 0.5),
}
"""How far logits may be off, as a share of the largest, and the least cosine of the gradients."""


def probe_pass(model: nn.Module, x: Tensor, y: Tensor, gradients: bool) -> PassResult:
    """One pass over x (n, c, h, w), of which the model is given a copy: with `gradients` those of
    the margin of y (n,), which do not vanish where the net is sure; else under no_grad."""
    eye: Callable[..., PassResult] = gradient_pass if gradients else forward_pass
    return eye(model, make_objective("margin", "untargeted"), x.clone(), y, y)


def describe_difference(
    wanted: PassResult, got: PassResult, precision: Precision, few: float = 0.0
) -> str:
    """How what one net showed differs from what is wanted, in words; "" if it does not.

    A share of `few` of the rows may have other gradients: where two values tie, as in max-pooling
    and at a ReLU's corner, rounding decides which of two right gradients is given.
    """
    if got.logits.shape != wanted.logits.shape:
        return f"its logits are {tuple(got.logits.shape)}, not {tuple(wanted.logits.shape)}"
    far, near = CLOSE[precision]
    off = float((got.logits - wanted.logits).abs().max() / wanted.logits.abs().max())
    if not off <= far:  # NaN, too
        return f"its logits are off by {off:.2g} of the largest"
    if not wanted.gradient.numel():
        return ""
    ours, theirs = got.gradient.flatten(1), wanted.gradient.flatten(1)
    scale = theirs.abs().amax(1, keepdim=True).clamp_min(torch.finfo(theirs.dtype).tiny)
    cosine = torch.cosine_similarity(ours / scale, theirs / scale)
    flat = theirs.abs().amax(1) == 0
    elsewhere = torch.where(flat, (ours != 0).any(1), ~(cosine >= near))
    if int(elsewhere.sum()) > few * len(elsewhere):
        return f"its gradients point elsewhere, at worst with cosine {cosine.min():.3g}"
    return ""
