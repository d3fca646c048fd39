"""Find problems of a model's gradient: absent, zero, not finite, or of another function."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bench.core.errors import first_line
from bench.engine.functional.gradients import PassResult, gradient_pass
from bench.engine.functional.losses import make_objective
from bench.models.preflight.findings import Finding
from bench.models.preflight.logit_checks import RANDOM, logit_scale

EXCERPT = 1024
"""Entries of an image's gradient that an excerpt has, at most twice as many."""


def take_excerpt(gradient: Tensor) -> Tensor:
    """Take what tells a gradient from another one in little memory.

    Args:
        gradient: Of each image, (n, c, h, w).

    Returns:
        The norm of each, and entries at equal distances, (n, 1 + entries), on the CPU.
    """
    flat = gradient.detach().flatten(1)
    entries = flat[:, :: max(1, flat.shape[1] // EXCERPT)]
    return torch.cat([flat.norm(dim=1, keepdim=True), entries], 1).cpu()


def find_gradient_problems(
    where: str,
    model: nn.Module,
    x: Tensor,
    logits: Tensor,
    random: bool,
    seen: PassResult | None = None,
) -> Iterator[Finding]:
    """Find what makes attacks by gradient weak on the model.

    Args:
        where: Start of a sentence, which names the model.
        model: The model.
        x: Images (n, c, h, w).
        logits: Their logits (n, classes), computed without a gradient.
        random: Whether the model answers at random.
        seen: The pass with a gradient, where it was made before.

    Yields:
        Findings about the gradient of the cross-entropy towards the least likely class.
    """
    other = logits.argmin(1)
    objective = make_objective("cross-entropy", "untargeted")
    try:
        seen = gradient_pass(model, objective, x, other, other) if seen is None else seen
    except RuntimeError as error:  # such as of a model that answers in inference mode
        yield Finding(
            "zero-gradient",
            f"{where} gives no gradient ({first_line(error)}): gradient attacks fail; let its "
            "forward be differentiated.",
        )
        return
    far = float((seen.logits - logits).abs().max())
    if not random and far > RANDOM * logit_scale(logits):
        yield Finding(
            "gradient-mode",
            f"{where} answers otherwise where a gradient is asked for than where none is (logits "
            f"differ by {far:.3g}): attacks by gradient follow another model than the one that is "
            "judged; let its forward not look at torch.is_grad_enabled or x.requires_grad, and "
            "attack it by scores, too.",
        )
    slopes = seen.gradient.flatten(1)
    lost = ~slopes.isfinite()
    if lost.any():
        yield Finding(
            "non-finite-gradient",
            f"{where} has a gradient with NaN or infinite entries on {int(lost.any(1).sum())} of "
            f"{len(x)} clean images ({int(lost.sum())} entries): attacks take them for 0 and do "
            "not move these pixels, so they may be weaker than they look. Look for a square root, "
            "a logarithm or a division at 0, and keep its argument away from 0.",
        )
    zero = int((slopes.abs().amax(1) == 0).sum())
    if zero:
        yield Finding(
            "zero-gradient",
            f"{where} has a gradient of zeros on {zero} of {len(x)} clean images: gradient "
            "attacks cannot move there, and their robust accuracy means nothing. Attack it by "
            "scores or by transfer, or adapt an attack: `backward` in its table replaces the "
            "gradient of a module (BPDA), `loss` in its params the loss.",
        )
