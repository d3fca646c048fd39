"""Compute what an attack rule sees at an iterate: passes averaged over samples and made finite."""

import torch
from torch import Tensor, nn

from bench.core.contracts.attack import AttackSpec, IterativeAttack
from bench.core.contracts.rule import AttackBatch, StepInput
from bench.core.errors import describe
from bench.engine.functional.gradients import PassResult, forward_pass, gradient_pass
from bench.engine.functional.logits import reaches_goal
from bench.engine.functional.losses import make_objective
from bench.engine.functional.norms import norm_of
from bench.engine.model_state import is_out_of_memory


class AccelerationError(Exception):
    """The accelerated model raised; the message names the exception."""


class StepEvaluator:
    """Evaluates iterates of one attack on the accelerated model."""

    def __init__(self, model: nn.Module, accelerated: nn.Module, spec: AttackSpec) -> None:
        """Choose loss and kind of pass.

        Args:
            model: Model under attack.
            accelerated: Model to differentiate; may be `model`.
            spec: An iterative attack and its params.
        """
        assert isinstance(spec.attack, IterativeAttack)
        self.rule, self.spec = spec.attack.rule, spec
        self.has_gradient = spec.attack.needs not in ("scores", "labels")
        self._accelerated, self._is_original = accelerated, accelerated is model
        self._pass = gradient_pass if self.has_gradient else forward_pass
        self._loss = make_objective(spec.params.loss, "targeted" if self.rule.aims else spec.goal)

    def evaluate(self, x: Tensor, known: AttackBatch) -> tuple[StepInput, Tensor]:
        """Compute a rule's input at iterates.

        One NaN in a gradient makes every sum over it NaN, and with it the iterate for the rest of
        the search: such entries are set to 0, the slope of a pixel of which nothing is known. An
        iterate with logits that are not finite is no success, as it is none for the judge, and a
        loss that is not finite is set below every other, so that no rule keeps that iterate as its
        best.

        Args:
            x: Iterates (n, c, h, w).
            known: What the rule may read of their examples.

        Returns:
            The rule's input, and the number of gradients of each row that were not finite, (n,).

        Raises:
            AccelerationError: The accelerated model raised anything but that memory ran out.
        """
        samples = self.spec.samples
        towards = known.y if self.rule.aims is None else known.aim
        (logits, loss, gradient), spoilt = self._finite_pass(x, towards, known.label)
        for _ in range(samples - 1):
            again, more = self._finite_pass(x, towards, known.label)
            logits, loss, gradient = logits + again[0], loss + again[1], gradient + again[2]
            spoilt = spoilt + more
        if samples > 1:
            logits, loss, gradient = logits / samples, loss / samples, gradient / samples
        loss = torch.where(loss.isfinite(), loss, -torch.inf)
        fooled = reaches_goal(logits, known.y, self.spec.goal) & logits.isfinite().all(1)
        if self.rule.within is not None:
            fooled = fooled & self.rule.within(known, self.spec.params, self.spec.norm)
        return StepInput(logits, loss, gradient, fooled), spoilt

    def _finite_pass(self, x: Tensor, y: Tensor, label: Tensor) -> tuple[PassResult, Tensor]:
        """Make one pass with a finite gradient; also return whether it was not, (n,), 0 or 1."""
        observed = self._call_accelerated(x, y, label)
        if not self.has_gradient:
            return observed, torch.zeros_like(y)
        spoilt = ~norm_of(observed.gradient, "linf").isfinite()
        finite = observed.gradient.nan_to_num(0.0, 0.0, 0.0)
        return observed._replace(gradient=finite), spoilt.to(y.dtype)

    def _call_accelerated(self, x: Tensor, towards: Tensor, label: Tensor) -> PassResult:
        """Make one pass of the accelerated model; name what it raises."""
        try:
            return self._pass(self._accelerated, self._loss, x, towards, label)
        except Exception as error:  # foreign code: the forward of the model
            short = isinstance(error, RuntimeError) and is_out_of_memory(error)
            if self._is_original or short:
                raise
            raise AccelerationError(f"it raised {describe(error)}") from error
