"""Compare two nets: equal logits and equal gradients up to rounding.

Used when an accelerated model is made (`bench.engine.acceleration.accelerate`), and again after an
attack that used it (`bench.evaluation.crafting`). A net is called as attacks call it, with a
gradient and without one, because a forward may behave differently in the two.
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
    """Make one pass of a model over a copy of the images.

    Args:
        model: The model.
        x: Images, (n, c, h, w), in [0, 1].
        y: Labels, (n,), int64.
        gradients: Whether to compute gradients, those of the margin of y, which do not vanish where
            the net is confident; else the pass runs under no_grad.

    Returns:
        Logits, loss and gradient.
    """
    eye: Callable[..., PassResult] = gradient_pass if gradients else forward_pass
    return eye(model, make_objective("margin", "untargeted"), x.clone(), y, y)


def describe_difference(
    wanted: PassResult, got: PassResult, precision: Precision, few: float = 0.0
) -> str:
    """Describe how one net's pass differs from another's.

    Args:
        wanted: Pass of the model.
        got: Pass of the accelerated model.
        precision: Arithmetic of the gradients.
        few: Share of the rows whose gradients may differ: where two values tie, as in max-pooling
            and at a ReLU's corner, rounding decides which of two right gradients results.

    Returns:
        One clause; empty if the nets agree within the tolerance of the precision.
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
