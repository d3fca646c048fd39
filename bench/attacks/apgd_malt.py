"""APGD-T towards the classes that MALT chooses: the nearest ones if the model were linear.

Of the `candidates` wrong classes with the largest logits on the clean image, those with the least
(z_y - z_c) / ||gradient of (z_y - z_c)||* are attacked, one after another, each from a random start
and only if those before it failed. All else is as in `apgd_t`.
Source: Melamed et al. 2024, https://arxiv.org/abs/2407.02240; Croce and Hein 2020, equation 7
Differs from the paper: the gradient has the norm that is dual to the threat model's, which is the
distance that the linear approximation implies.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from bench.attacks import apgd, apgd_t
from bench.core.contracts.attack import IterativeAttack
from bench.core.contracts.parameters import Count
from bench.core.contracts.rule import Rule, TargetChoice
from bench.core.contracts.types import Norm


@dataclass(frozen=True, kw_only=True)
class Params(apgd_t.Params):
    """Parameters of APGD-T, and of the ranking."""

    candidates: Count = 100
    """Wrong classes of the largest logits that are ranked, at one gradient each; all, if the model
    has fewer."""


def aims(params: Params) -> TargetChoice:
    """Choose the nearest wrong classes under the linear approximation.

    Args:
        params: Params of the attack.

    Returns:
        Number and order of the classes.
    """
    return TargetChoice(params.targets, "distance", params.candidates)


def traits(params: Params, norm: Norm, eps: float) -> Mapping[str, str]:
    """Describe the attack for cross-checks.

    Args:
        params: Params of the attack.
        norm: Norm of the ball.
        eps: Radius of the ball.

    Returns:
        Properties by name.
    """
    ranked = f"by linearised distance, of {params.candidates}"
    return {**apgd_t.traits(params, norm, eps), "targets": f"{params.targets} {ranked}"}


ATTACK = IterativeAttack(
    summary="APGD towards the wrong classes whose linearised boundaries are nearest",
    source="Melamed et al. 2024",
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
