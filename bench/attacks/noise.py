"""Random noise: one uniform draw from the ball, no question asked of the model.

The floor that every attack must beat: a gradient attack that fools no more than noise of the same
size has failed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.core.contracts.attack import Attack
from bench.core.contracts.types import Threat
from bench.core.rng import Noise
from bench.engine.functional import projections, sampling


@dataclass(frozen=True, kw_only=True)
class Params:
    """Nothing to choose."""


def run(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, params: Params, noise: Noise
) -> Tensor:
    eps = torch.full_like(x[:, 0, 0, 0], threat.eps)
    start = x + sampling.random_in_ball(x, eps, threat.norm, noise)
    return projections.project(start, x, eps, threat.norm)


ATTACK = Attack(
    summary="one uniform draw from the ball: the floor that every attack must beat",
    source="a control, as in Athalye et al. 2018",
    params=Params,
    norms=("linf", "l2", "l1", "l0"),
    needs="labels",
    stochastic=True,
    run=run,
)
