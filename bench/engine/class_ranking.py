"""Rank classes by how near their decision boundaries are if the model were linear at the image.

Source: Melamed et al. 2024 (MALT), https://arxiv.org/abs/2407.02240
"""

import torch
from torch import Tensor, nn

from bench.core.contracts.types import Norm
from bench.engine.functional.logits import widen
from bench.engine.functional.norms import DUAL, norm_of
from bench.engine.model_state import call_model


def linearised_distances(
    model: nn.Module,
    x: Tensor,
    label: Tensor,
    candidates: Tensor,
    norm: Norm,
    samples: int = 1,
) -> Tensor:
    """Compute (z_label - z_c) / ||gradient of z_label - z_c||* for each candidate class c.

    This is the distance in `norm` from x to the decision boundary of c under the linear
    approximation of the model at x, without the box. All candidates share one forward pass, whose
    graph is kept for one backward pass each.

    Source: Melamed et al. 2024, section 3, https://arxiv.org/abs/2407.02240

    Args:
        model: The model, in evaluation mode.
        x: Images, (n, c, h, w), in [0, 1].
        label: True labels, (n,), int64.
        candidates: Wrong classes of each image, (n, candidates), int64.
        norm: Norm of the threat model: "linf", "l2" or "l1"; the gradient has the dual norm.
        samples: Passes whose logits are averaged, for a randomised model.

    Returns:
        Distances, (n, candidates), in the unit of `norm`; infinite where the gradient is zero,
        since nothing is known of the class there. Entries of a gradient that are not finite count
        as zero.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = torch.stack([widen(call_model(model, x)) for _ in range(samples)]).mean(0)
        gaps = logits.gather(1, label[:, None]) - logits.gather(1, candidates)
        if not gaps.requires_grad:
            return torch.full_like(gaps, torch.inf)
        distances = []
        for gap in gaps.unbind(1):
            (gradient,) = torch.autograd.grad(
                gap.sum(), x, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            # As in the engine's steps: the slope is 0 at a pixel of which nothing is known.
            size = norm_of(gradient.nan_to_num(0.0, 0.0, 0.0), DUAL[norm])
            distance = gap.detach() / size
            distances.append(torch.where(distance.isfinite(), distance, torch.inf))
    return torch.stack(distances, 1)
