"""AutoAttack, then later attacks on what it leaves: a second opinion on a strong number.

The four parts of `autoattack` come first, so that what they leave is its number. Then follow, each
on the examples that are still robust: APGD on the probability margin (PMA) and on the difference of
logits, both with restarts, and APGD-T towards the targets of MALT. The report shows the robust
accuracy after each part: whether the number still moves.
Source: Croce and Hein 2020, https://arxiv.org/abs/2003.01690; Xie et al. 2025 (PMA),
https://arxiv.org/abs/2411.15210; Melamed et al. 2024 (MALT), https://arxiv.org/abs/2407.02240
Differs from the papers: PMA ascends its loss by APGD.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.attacks import apgd, apgd_malt, autoattack
from bench.core.contracts.attack import EnsembleAttack, Part
from bench.core.contracts.parameters import Count
from bench.core.contracts.types import Norm


@dataclass(frozen=True, kw_only=True)
class Params(autoattack.Params):
    """Parameters of AutoAttack, whose targets MALT has as well, and of the later parts."""

    restarts: Count = 5
    """Of APGD on the probability margin and on the difference of logits."""
    candidates: Count = 100
    """Wrong classes that MALT ranks, at one gradient each."""


def parts(params: Params, norm: Norm) -> Sequence[Part]:
    """Return the parts of AutoAttack and those that follow.

    Args:
        params: Params of the attack.
        norm: Norm of the ball.

    Returns:
        The parts in order.
    """
    steps, restarts = params.steps, params.restarts
    pma = apgd.Params(steps=steps, restarts=restarts, loss="pma")
    margin = apgd.Params(steps=steps, restarts=restarts, loss="logit-difference")
    malt = apgd_malt.Params(steps=steps, targets=params.targets, candidates=params.candidates)
    return (
        *autoattack.parts(_standard(params), norm),
        Part("apgd-pma", "apgd", apgd.ATTACK, pma),
        Part("apgd-margin", "apgd", apgd.ATTACK, margin),
        Part("apgd-malt", "apgd_malt", apgd_malt.ATTACK, malt),
    )


def _standard(params: Params) -> autoattack.Params:
    """Return the params of AutoAttack."""
    return autoattack.Params(steps=params.steps, targets=params.targets, queries=params.queries)


def traits(params: Params, norm: Norm, eps: float) -> Mapping[str, str]:
    """Describe the attack for cross-checks.

    Args:
        params: Params of the attack.
        norm: Norm of the ball.
        eps: Radius of the ball.

    Returns:
        Properties by name.
    """
    return {
        **autoattack.traits(_standard(params), norm, eps),
        "parts": ", ".join(part.label for part in parts(params, norm)),
        "restarts": str(params.restarts),
    }


def caveats(params: Params, norm: Norm, eps: float) -> Sequence[str]:
    """Return the caveat if the first parts are not the standard AutoAttack.

    Args:
        params: Params of the attack.
        norm: Norm of the ball.
        eps: Radius of the ball.

    Returns:
        Sentences for the report.
    """
    return autoattack.caveats(_standard(params), norm, eps)


ATTACK = EnsembleAttack(
    summary="AutoAttack, then APGD on two more margins and towards MALT's targets",
    source="Croce and Hein 2020; Xie et al. 2025; Melamed et al. 2024",
    params=Params,
    norms=("linf", "l2", "l1"),
    goals=("untargeted",),
    stochastic=True,
    min_classes=4,
    parts=parts,
    traits=traits,
    caveats=caveats,
)
