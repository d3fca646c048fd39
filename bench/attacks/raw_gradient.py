"""Raw gradient: plain gradient steps on the perturbation, no sign and no normalisation.

delta_0 = 0; delta <- clip(delta + lr * grad L, -eps, eps). Untargeted L is the cross-entropy of the
label; targeted it is the cross-entropy of the label minus that of the target, z_t - z_y exactly.
Source: Kolter and Madry 2018, adversarial-ml-tutorial.org/introduction (lr 0.1, 30 steps at 2/255;
targeted lr 0.005, 100 steps)
Differs from the source: x + delta is kept in [0, 1], where the tutorial leaves the box; the last
iterate is judged, where the tutorial prints the class of the one before.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

from annotated_types import Gt
from torch import Tensor

from bench.attacks.common import PROJECTION
from bench.core.contracts.attack import Attack
from bench.core.contracts.parameters import Count
from bench.core.contracts.rule import AttackBatch, Rule
from bench.core.contracts.types import Loss, Norm
from bench.core.rng import Noise
from bench.engine.functional import projections


@dataclass(frozen=True, kw_only=True)
class Params:
    steps: Count = 30
    lr: Annotated[float, Gt(0)] = 0.1
    """Length of a step in gradients: pixels per unit of loss per pixel."""
    loss: Loss = "label-and-target"
    restarts: ClassVar[int] = 1


class State(NamedTuple):
    x: Tensor


def init(items: AttackBatch, noise: Noise, params: Params, norm: Norm) -> State:
    return State(items.x)


def step(state: State, gradient: Tensor, items: AttackBatch, params: Params, norm: Norm) -> State:
    moved = state.x + params.lr * gradient
    return State(projections.project(moved, items.x, items.eps, norm))


def traits(params: Params, norm: Norm, eps: float) -> Mapping[str, str]:
    return {
        "start": "clean",
        "steps": str(params.steps),
        "alpha": f"{params.lr:g} * gradient",
        "loss": params.loss,
        "projection": PROJECTION[norm],
    }


ATTACK = Attack(
    summary="plain gradient steps on the perturbation, without sign or normalisation",
    source="Kolter and Madry 2018",
    params=Params,
    norms=("linf", "l2"),
    scale_free=False,
    rule=Rule(init=init, step=step),
    traits=traits,
)
