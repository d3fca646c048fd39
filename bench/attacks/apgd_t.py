"""APGD-T: APGD towards one wrong class after another, on the targeted difference of logits ratio.

The classes are those most likely on the clean image, each a run of its own from a random start,
made only if those before it failed; any wrong class is a success.
Source: Croce and Hein 2020, section 4 and equation 7, https://arxiv.org/abs/2003.01690
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Le

from bench.attacks import apgd
from bench.core.contracts.attack import Attack
from bench.core.contracts.parameters import Count
from bench.core.contracts.rule import Rule
from bench.core.contracts.types import Loss, Norm


@dataclass(frozen=True, kw_only=True)
class Params:
    steps: Count = 100
    restarts: Count = 1
    """Runs towards each class."""
    targets: Count = 9
    rho: Annotated[float, Ge(0), Le(1)] = 0.75
    """As APGD's."""
    loss: ClassVar[Loss] = "dlr"


def aims(params: Params) -> int:
    return params.targets


def traits(params: Params, norm: Norm, eps: float) -> Mapping[str, str]:
    shared = apgd.Params(steps=params.steps, restarts=params.restarts, rho=params.rho)
    told = {"loss": "targeted dlr", "targets": str(params.targets)}
    return {**apgd.traits(shared, norm, eps), **told}


ATTACK = Attack(
    summary="APGD towards each of the likeliest wrong classes",
    source="Croce and Hein 2020; l1 Croce and Hein 2021",
    params=Params,
    norms=("linf", "l2", "l1"),
    goals=("untargeted",),
    stochastic=True,
    min_classes=4,
    rule=Rule(
        init=apgd.init, respond=apgd.respond, result=apgd.result, within=apgd.within, aims=aims
    ),
    traits=traits,
)
