"""Attack training images at every step with the current parameters of the model.

Any of bench's own fixed-budget attacks can be trained against. No gradient flows into the
parameters through the attack (Goodfellow et al. 2015, section 6: the derivative of the sign is 0;
Madry et al. 2018, appendix A: Danskin's theorem).
"""

from pathlib import Path

from torch import Tensor, nn

from bench.core import registry, rng
from bench.core.contracts.attack import Attack, AttackSpec, IterativeAttack
from bench.core.errors import SuiteError
from bench.core.validation import Validator
from bench.engine import stream
from bench.workflows.training.recipe import Adversary


class AdversarialBatches:
    """Attack batches as an `Adversary` says, with noise keyed by (seed, epoch, example)."""

    def __init__(self, adversary: Adversary, seed: int) -> None:
        """Look up the attack and fill in its parameters.

        Args:
            adversary: Attack, threat model and schedule of eps.
            seed: Seed of the recipe.

        Raises:
            SuiteError: The attack is unknown, lacks the norm or is not an untargeted
                fixed-budget attack of bench's own, or a parameter is invalid.
        """
        self.adversary, self.seed = adversary, seed
        attack: Attack = registry.find("attacks", adversary.attack, Path())
        able = (
            isinstance(attack, IterativeAttack)
            and attack.budget == "fixed"
            and "untargeted" in attack.goals
        )
        if not able or adversary.norm not in attack.norms:
            raise SuiteError(
                f"adversarial.attack: expected a rule such as bench's own attacks, untargeted, "
                f"within an eps in {adversary.norm}, got '{adversary.attack}'"
            )
        check = Validator("adversarial.params")
        self.params = check.fill(attack.params, dict(adversary.params), "")
        check.stop_if_wrong()
        self.attack = attack

    def train(self, model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, epoch: int) -> Tensor:
        """Attack a training batch in the model's current mode; eps grows during the warm-up.

        Args:
            model: Model in training.
            x: Images, (n, c, h, w) in [0, 1].
            y: Labels, (n,).
            ids: Indices of the images in the data set, (n,).
            epoch: Number of the epoch, from 1.

        Returns:
            Attacked images, shape as x.
        """
        share = min(1.0, epoch / (self.adversary.warmup + 1))
        seed = rng.fold(self.seed, "adversarial training", epoch)
        return self._attack(model, x, y, ids, self.adversary.eps * share, seed)

    def validate(self, model: nn.Module, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        """Attack a batch in evaluation mode at the full eps; the model is left in that mode.

        Args:
            model: Model in training.
            x: Images, (n, c, h, w) in [0, 1].
            y: Labels, (n,).
            ids: Indices of the images in the data set, (n,).

        Returns:
            Attacked images, shape as x.
        """
        seed = rng.fold(self.seed, "adversarial validation")
        return self._attack(model.eval(), x, y, ids, self.adversary.eps, seed)

    def _attack(
        self, model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, eps: float, seed: int
    ) -> Tensor:
        adversary = self.adversary
        spec = AttackSpec(
            name=adversary.attack,
            attack=self.attack,
            params=self.params,
            norm=adversary.norm,
            eps=(eps,),
            stop="never",
            seed=seed,
        )
        return stream.run_attack(model, spec, x, y, ids, rows=len(x)).x_adv[0]
