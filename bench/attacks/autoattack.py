"""AutoAttack, standard: APGD on cross-entropy, APGD-T, FAB-T and Square, each on what still stands.

Nothing is to be tuned: step sizes find themselves, and the parts fail in different ways. An example
counts as robust if no part breaks it; which part did is recorded. In l1 APGD has five restarts and
APGD-T five targets, as in the authors' code, and FAB-T, which is slower there, half as many looks
again: as many passes as that code's.
Source: Croce and Hein 2020, section 4, https://arxiv.org/abs/2003.01690, in the composition of its
code, https://github.com/fra31/auto-attack, version "standard".
Differs from the code: each example has its own random numbers, so nothing depends on the batch; an
example leaves at its first success; FAB-T stops once its nearest find lies in the ball.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.attacks import apgd, apgd_t, fab_t, square
from bench.core.contracts.attack import Attack, Part
from bench.core.contracts.parameters import Count
from bench.core.contracts.types import Norm


@dataclass(frozen=True, kw_only=True)
class Params:
    steps: Count = 100
    """Of each run of APGD and FAB-T."""
    targets: Count = 9
    """Wrong classes that APGD-T and FAB-T are driven to, as far as the model has so many."""
    queries: Count = 5000
    """Of Square."""


def parts(params: Params, norm: Norm) -> Sequence[Part]:
    steps, targets = params.steps, params.targets
    restarts, fewer, looks = 1, targets, steps
    if norm == "l1":
        restarts, fewer, looks = 5, min(5, targets), 3 * steps // 2
    return (
        Part("apgd-ce", "apgd", apgd.ATTACK, apgd.Params(steps=steps, restarts=restarts)),
        Part("apgd-t", "apgd_t", apgd_t.ATTACK, apgd_t.Params(steps=steps, targets=fewer)),
        Part("fab-t", "fab_t", fab_t.ATTACK, fab_t.Params(steps=looks, targets=targets)),
        Part("square", "square", square.ATTACK, square.Params(steps=params.queries)),
    )


def traits(params: Params, norm: Norm, eps: float) -> Mapping[str, str]:
    return {
        "parts": ", ".join(part.label for part in parts(params, norm)),
        "steps": str(params.steps),
        "targets": str(params.targets),
        "queries": str(params.queries),
    }


def caveats(params: Params, norm: Norm, eps: float) -> Sequence[str]:
    standard = Params()
    if params == standard:
        return ()
    return (
        "Not the standard AutoAttack, which makes 100 steps, 9 targets and 5,000 queries: "
        "its numbers are not to be compared with published ones.",
    )


ATTACK = Attack(
    summary="APGD, APGD-T, FAB-T and Square one after another, each on what still stands",
    source="Croce and Hein 2020",
    params=Params,
    norms=("linf", "l2", "l1"),
    goals=("untargeted",),
    stochastic=True,
    min_classes=4,
    parts=parts,
    traits=traits,
    caveats=caveats,
)
