"""Attacks as rules: pure functions over per-row state, which the engine iterates.

A rule has the three parts `init`, `step` (or `respond`) and, optionally, `result`. The engine owns
the loop: forward and backward passes, restarts, early stopping and batching. Every tensor has one
row per example, and no row may read another; so results do not depend on the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

from bench.core.contracts.types import Loss, Norm
from bench.core.errors import ContractError
from bench.core.rng import Noise


class AttackBatch(NamedTuple):
    """What a rule may read of the rows of a batch beside its own state."""

    x: Tensor
    """Clean images, (n, c, h, w), in [0, 1]."""
    y: Tensor
    """Class to leave (untargeted: the label) or to reach (targeted), (n,), int64."""
    label: Tensor
    """True label, (n,), int64."""
    eps: Tensor
    """Radius of each row's ball, (n,)."""
    k: Tensor
    """Number of steps that each row has made, (n,), int64."""
    aim: Tensor
    """Wrong class that this restart ascends towards, (n,), int64; -1 for a rule without `aims`."""
    restart: Tensor
    """Number of earlier restarts, (n,), int64; for a rule with `aims`, towards the same class."""
    nearest: Tensor
    """Least distance found by the earlier restarts, (n,), for a rule with `seeks`; infinite if they
    found no adversarial example, and for any other rule."""


class StepInput(NamedTuple):
    """Result of the forward and backward pass at the current iterates."""

    logits: Tensor
    """(n, classes); the mean over the samples of a randomised model."""
    loss: Tensor
    """Loss to ascend, (n,)."""
    gradient: Tensor
    """Gradient of each row's loss with respect to that row, (n, c, h, w); empty for an attack that
    needs scores alone."""
    fooled: Tensor
    """Whether the iterate reached the attack's goal, (n,), bool."""


class TargetChoice(NamedTuple):
    """Which wrong classes a rule attacks towards."""

    number: int
    """Number of classes, one restart each."""
    ranking: Literal["logits", "distance"] = "logits"
    """Order of the classes: by their logits on the clean image, the largest first, or by the
    distance of their decision boundaries there if the model were linear, the nearest first."""
    candidates: int = 100
    """Classes of the largest logits among which "distance" orders; each costs one gradient."""


class RuleParams(Protocol):
    """The fields that the engine reads from the params of every rule."""

    @property
    def steps(self) -> int:
        """Number of steps of each restart."""

    @property
    def restarts(self) -> int:
        """Number of restarts; the next one runs where the one before failed."""

    @property
    def loss(self) -> Loss:
        """Loss that is ascended."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Functions that define an iterative attack.

    A state is a NamedTuple of tensors whose first axis is the row and whose field `x` is the
    iterate. The gradient is that of the loss to ascend (already negated where an attack is
    targeted) with respect to the iterate. A rule has `step` or, if it needs more than the gradient,
    `respond`.
    """

    init: Callable[[AttackBatch, Noise, Any, Norm], Any]
    """(batch, noise, params, norm) -> state at step 0."""
    step: Callable[[Any, Tensor, AttackBatch, Any, Norm], Any] | None = None
    """(state, gradient (n, c, h, w), batch, params, norm) -> next state."""
    respond: Callable[[Any, StepInput, AttackBatch, Any, Norm], Any] | None = None
    """(state, step input, batch, params, norm) -> next state."""
    result: Callable[[Any], Tensor] | None = None
    """(state) -> images that rows return after their last step; the iterate if None."""
    seeks: bool = False
    """Whether the rule minimises the distance and keeps the nearest adversarial example. Its state
    then has a field `nearest`, (n,): that example's distance, infinite while there is none."""
    aims: Callable[[Any], int | TargetChoice] | None = None
    """(params) -> wrong classes to attack towards, one restart each, with the targeted loss; a
    number means so many in the order of their logits on the clean image. Success is the attack's
    own goal."""
    within: Callable[[AttackBatch, Any, Norm], Tensor] | None = None
    """(batch, params, norm) -> whether each iterate is in its ball, (n,), bool; None if every
    iterate is. Outside the ball nothing counts as a success."""
    one_gradient: bool = False
    """Whether the rule makes one step from x at every eps, so that a sweep over eps needs one
    gradient."""

    def __post_init__(self) -> None:
        """Check that the fields belong together.

        Raises:
            ContractError: The rule has both or neither of `step` and `respond`, or `seeks` without
                `result`.
        """
        if (self.step is None) == (self.respond is None):
            raise ContractError("a Rule has either a step or a respond function")
        if self.seeks and self.result is None:
            raise ContractError("a Rule that seeks the least distance says what it found: result")

    def choose_targets(self, params: Any) -> TargetChoice | None:
        """Return which wrong classes the rule attacks towards.

        Args:
            params: The attack's params.

        Returns:
            Number and order of the classes; None for a rule without `aims`.
        """
        if self.aims is None:
            return None
        chosen = self.aims(params)
        return chosen if isinstance(chosen, TargetChoice) else TargetChoice(chosen)

    def next(
        self, state: Any, observed: StepInput, batch: AttackBatch, params: Any, norm: Norm
    ) -> Any:
        """Make one step.

        Args:
            state: State of the rows.
            observed: Forward and backward pass at the state's iterates.
            batch: Images, labels and radii of the rows.
            params: The attack's params.
            norm: Norm of the ball.

        Returns:
            The next state.
        """
        if self.respond is not None:
            return self.respond(state, observed, batch, params, norm)
        assert self.step is not None
        return self.step(state, observed.gradient, batch, params, norm)
