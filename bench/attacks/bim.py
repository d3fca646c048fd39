"""BIM (I-FGSM): projected gradient ascent from x itself, the last iterate returned.

x_0 = x; x_{k+1} = clip(clip(x_k + alpha * sign(grad L(f(x_k), y)), x - eps, x + eps), 0, 1): PGD
without a random start, and so PGD's own step.
Source: Kurakin, Goodfellow, Bengio 2017, section 2.2, https://arxiv.org/abs/1607.02533
Differs from the paper: steps and alpha are parameters (default alpha = eps / steps), where the
paper takes alpha = 1/255 and min(255 eps + 4, 1.25 * 255 eps) steps.
"""

from dataclasses import dataclass
from typing import ClassVar

from bench.attacks import pgd
from bench.attacks.common import Share
from bench.core.contracts.attack import Attack
from bench.core.contracts.parameters import Alpha, Count
from bench.core.contracts.rule import Rule
from bench.core.contracts.types import Loss


@dataclass(frozen=True, kw_only=True)
class Params:
    steps: Count = 10
    alpha: Alpha = "eps/steps"
    loss: Loss = "cross-entropy"
    l1_share: Share = 0.01
    """As PGD's."""
    random_start: ClassVar[bool] = False
    restarts: ClassVar[int] = 1


ATTACK = Attack(
    summary="projected gradient ascent from x itself",
    source="Kurakin et al. 2017",
    params=Params,
    norms=("linf", "l2", "l1"),
    rule=Rule(init=pgd.init, step=pgd.step),
    traits=pgd.traits,
    caveats=pgd.caveats,
)
