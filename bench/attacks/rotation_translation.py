"""Worst of a grid of rotations and translations: the first one that the model gets wrong.

The grid has `angles` rotations and `shifts` by `shifts` translations, equally spaced up to the
limits of the level. It is tried from the weakest transform to the strongest (the largest of its
three parameters as a share of its limit), so the one recorded is the weakest that succeeds. An
example that no transform breaks is returned unchanged.
Source: Engstrom et al. 2019, section 4.3 (grid search), https://arxiv.org/abs/1712.02779
Differs from the paper: the search ends at the first success, in a fixed order; whether an example
is broken does not depend on that.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.core.contracts.attack import ExternalAttack
from bench.core.contracts.parameters import Count
from bench.core.contracts.threat import TransformedBatch
from bench.core.contracts.types import Norm, Threat
from bench.core.rng import Noise
from bench.engine.functional.logits import predict_class
from bench.engine.rejection import spare_rejected
from bench.engine.threats import rotation_translation


@dataclass(frozen=True, kw_only=True)
class Params:
    """Parameters of the attack."""

    angles: Count = 31
    """Rotations in the grid; an odd number includes none."""
    shifts: Count = 5
    """Translations along each axis."""


def build_grid(level: float, height: int, width: int, params: Params) -> Tensor:
    """List the transforms of the grid, the identity left out, from weak to strong.

    Args:
        level: Level of the threat model.
        height: Rows of the image.
        width: Columns of the image.
        params: Sizes of the grid.

    Returns:
        Degrees, pixels to the right and pixels down, (transforms, 3), float64.
    """
    sizes = (params.angles, params.shifts, params.shifts)
    shares = torch.cartesian_prod(*(_spread(size) for size in sizes))
    strength = shares.abs().amax(1)
    order = strength.argsort(stable=True)
    limits = rotation_translation.list_limits(level, height, width)
    return (shares * torch.tensor(limits, dtype=torch.float64))[order][(strength[order] > 0)]


def _spread(size: int) -> Tensor:
    """Space numbers equally in [-1, 1], the middle exactly 0; a single one is 0."""
    if size == 1:
        return torch.zeros(1, dtype=torch.float64)
    return (2 * torch.arange(size, dtype=torch.float64) - (size - 1)) / (size - 1)


def run(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, params: Params, noise: Noise
) -> TransformedBatch:
    """Try the grid on the examples that are still classified correctly.

    Args:
        model: Maps images to logits.
        x: Clean images, (n, c, h, w), in [0, 1].
        y: Class to leave or, if targeted, to reach.
        threat: Level and goal.
        params: Params of the attack.
        noise: Not read.

    Returns:
        Images and the parameters of each.
    """
    x_adv, chosen = x.clone(), torch.zeros(len(x), 3, dtype=torch.float64)
    remaining = torch.arange(len(x))
    with torch.no_grad():
        for parameters in build_grid(threat.eps, x.shape[2], x.shape[3], params):
            rows = parameters.expand(len(remaining), 3)
            images = rotation_translation.transform(x[remaining], rows)
            seen = spare_rejected(model, y[remaining], threat.goal)
            pred = predict_class(seen(images.clone()))
            won = (pred == y[remaining]) == (threat.goal == "targeted")
            won = won.cpu()
            x_adv[remaining[won]], chosen[remaining[won]] = images[won], rows[won]
            remaining = remaining[~won]
            if not len(remaining):
                break
    return TransformedBatch(x_adv, chosen)


def traits(params: Params, norm: Norm, eps: float) -> Mapping[str, str]:
    """Say which grid is searched.

    Args:
        params: Params of the attack.
        norm: Not read.
        eps: Not read.

    Returns:
        The size of the grid.
    """
    return {"grid": f"{params.angles} x {params.shifts} x {params.shifts}"}


ATTACK = ExternalAttack(
    summary="the worst of a grid of rotations and translations",
    source="Engstrom et al. 2019",
    params=Params,
    norms=("rotation-translation",),
    needs="labels",
    run=run,
    spares_rejected=True,
    traits=traits,
)
