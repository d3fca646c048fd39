"""Patch attack: signed gradient ascent on the pixels of a square, all others as they are.

p_0 is uniform in [0, 1] inside the square; x_{k+1} = clip(x_k + alpha * sign(gradient), 0, 1)
inside, x outside. The square is at the image's centre, or at `places` random places of each
example, tried in turn until one succeeds (the worst of them). Each image has its own patch: a patch
that fools on every image (Brown et al.) would be weaker.
Source: Karmon et al. 2018 (localised noise), https://arxiv.org/abs/1801.02608; Madry et al. 2018
Differs from the paper: signed steps, and the ascent ends at the first success.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Gt, Le
from torch import Tensor, nn

from bench.core.contracts.attack import ExternalAttack
from bench.core.contracts.parameters import Count
from bench.core.contracts.threat import TransformedBatch
from bench.core.contracts.types import Norm, Threat
from bench.core.rng import Noise
from bench.engine.functional.gradients import gradient_pass
from bench.engine.functional.logits import predict_class
from bench.engine.functional.losses import cross_entropy
from bench.engine.rejection import spare_rejected
from bench.engine.threats import patch


@dataclass(frozen=True, kw_only=True)
class Params:
    """Parameters of the attack."""

    location: Literal["random", "centre"] = "random"
    places: Count = 1
    """Random places that are tried in turn; the centre is a single one."""
    steps: Count = 40
    """Steps at each place."""
    alpha: Annotated[float, Gt(0), Le(1)] = 0.05
    """Step of a pixel, in pixels of [0, 1]."""

    def __post_init__(self) -> None:
        """Check that the fields belong together.

        Raises:
            ValueError: Several places at the centre.
        """
        if self.location == "centre" and self.places > 1:
            raise ValueError(f"places: expected 1 with location = 'centre', got {self.places}")


def run(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, params: Params, noise: Noise
) -> TransformedBatch:
    """Optimise a patch for each image.

    Args:
        model: Maps images to logits.
        x: Clean images, (n, c, h, w), in [0, 1].
        y: Class to leave or, if targeted, to reach.
        threat: Its eps is the share of the area.
        params: Params of the attack.
        noise: Random numbers keyed by example.

    Returns:
        Images and the upper left pixel of each patch.
    """
    side = patch.patch_side(threat.eps, x.shape[2], x.shape[3])
    x_adv, chosen = x.clone(), torch.zeros(len(x), 2, dtype=torch.float64)
    remaining = torch.arange(len(x))
    for place in range(params.places):
        corners = _choose_corners(x, side, place, params, noise)[remaining]
        start = (noise.uniform(x, 2 * place + 1)[remaining] + 1) / 2
        mask = patch.make_mask(x[remaining], corners, side)
        images, won = _ascend(model, x[remaining], y[remaining], mask, start, threat, params)
        x_adv[remaining], chosen[remaining] = images, corners
        remaining = remaining[~won.cpu()]
        if not len(remaining):
            break
    return TransformedBatch(x_adv, chosen)


def _choose_corners(x: Tensor, side: int, place: int, params: Params, noise: Noise) -> Tensor:
    """Choose the upper left pixel of each patch, (n, 2), float64."""
    free = torch.tensor([x.shape[2] - side, x.shape[3] - side], dtype=torch.float64)
    if params.location == "centre":
        return (free // 2).expand(len(x), 2)
    share = (noise.uniform(x.new_zeros(len(x), 2), 2 * place).double().cpu() + 1) / 2
    return (share * (free + 1)).floor().minimum(free)


def _ascend(
    model: nn.Module, x: Tensor, y: Tensor, mask: Tensor, start: Tensor, threat: Threat,
    params: Params,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Ascend inside the masks until the model is fooled; return images and successes (n,)."""
    targeted = threat.goal == "targeted"
    current = torch.where(mask, start, x)
    done = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def objective(logits: Tensor, y: Tensor, label: Tensor) -> Tensor:
        return -cross_entropy(logits, y) if targeted else cross_entropy(logits, y)

    for _ in range(params.steps):
        active = (~done).nonzero()[:, 0]
        if not len(active):
            break
        attacked = spare_rejected(model, y[active], threat.goal)
        seen = gradient_pass(attacked, objective, current[active], y[active], y[active])
        won = (predict_class(seen.logits) == y[active]) == targeted
        done[active[won]] = True
        left = active[~won]
        moved = current[left] + params.alpha * seen.gradient[~won].nan_to_num().sign()
        current[left] = torch.where(mask[left], moved.clamp(0, 1), x[left])
    left = (~done).nonzero()[:, 0]
    if len(left):  # the last step has not been seen
        with torch.no_grad():
            attacked = spare_rejected(model, y[left], threat.goal)
            done[left] = (predict_class(attacked(current[left].clone())) == y[left]) == targeted
    return current, done


def traits(params: Params, norm: Norm, eps: float) -> Mapping[str, str]:
    """Say how the patch is placed and optimised.

    Args:
        params: Params of the attack.
        norm: Not read.
        eps: Not read.

    Returns:
        Location and steps.
    """
    placed = params.location if params.places == 1 else f"worst of {params.places} random places"
    return {"location": placed, "steps": str(params.steps)}


ATTACK = ExternalAttack(
    summary="a square patch per image by signed gradient ascent, pixels outside unchanged",
    source="Karmon et al. 2018",
    params=Params,
    norms=("patch",),
    stochastic=True,
    counts_steps=False,
    run=run,
    spares_rejected=True,
    traits=traits,
)
