"""Attacked training images, made afresh from the current parameters at every step.

Any registered attack of bench's own can be trained against. No gradient flows into the parameters
through the attack (Goodfellow et al. 2015, section 6: the sign's derivative is 0; Madry et al.
2018, appendix A: Danskin's theorem).
"""

from pathlib import Path

from torch import Tensor, nn

from bench.core import registry, rng
from bench.core.contracts.attack import Attack, AttackSpec
from bench.core.errors import SuiteError
from bench.core.validation import Validator
from bench.engine import stream
from bench.workflows.training.recipe import Adversary


class AdversarialBatches:
    """Attacks batches as an `Adversary` says, with noise keyed by (seed, epoch, example)."""

    def __init__(self, adversary: Adversary, seed: int) -> None:
        """Raises: SuiteError for an attack that is unknown, has no such norm, or is no rule."""
        self.adversary, self.seed = adversary, seed
        found: Attack = registry.find("attacks", adversary.attack, Path())
        able = found.rule is not None and found.budget == "fixed" and "untargeted" in found.goals
        if not able or adversary.norm not in found.norms:
            raise SuiteError(
                f"adversarial.attack: expected a rule such as bench's own attacks, untargeted, "
                f"within an eps in {adversary.norm}, got '{adversary.attack}'"
            )
        check = Validator("adversarial.params")
        self.params = check.fill(found.params, dict(adversary.params), "")
        check.stop_if_wrong()
        self.attack = found

    def train(self, model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, epoch: int) -> Tensor:
        """x attacked in the model's present mode, dropout and all; eps grows while warming up."""
        share = min(1.0, epoch / (self.adversary.warmup + 1))
        seed = rng.fold(self.seed, "adversarial training", epoch)
        return self._attack(model, x, y, ids, self.adversary.eps * share, seed)

    def validate(self, model: nn.Module, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        """x attacked in evaluation mode at the full eps."""
        seed = rng.fold(self.seed, "adversarial validation")
        return self._attack(model.eval(), x, y, ids, self.adversary.eps, seed)

    def _attack(
        self, model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, eps: float, seed: int
    ) -> Tensor:
        adversary = self.adversary
        curve = AttackSpec(
            name=adversary.attack,
            attack=self.attack,
            params=self.params,
            norm=adversary.norm,
            eps=(eps,),
            stop="never",
            seed=seed,
        )
        return stream.run_attack(model, curve, x, y, ids, rows=len(x)).x_adv[0]
