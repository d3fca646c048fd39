"""Compute what an attack rule sees at an iterate: passes averaged over samples and made finite."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bench.core.contracts.attack import AttackSpec, IterativeAttack
from bench.core.contracts.input_transforms import InputTransforms
from bench.core.contracts.rule import AttackBatch, StepInput
from bench.core.errors import describe
from bench.core.rng import Noise, hash_keys, hash_uniform
from bench.engine.adaptation import AdaptedModel
from bench.engine.functional.gradients import PassResult, forward_pass, gradient_pass
from bench.engine.functional.input_transforms import DRAWS, resize_and_pad, smooth_gradient
from bench.engine.functional.logits import reaches_goal
from bench.engine.functional.losses import Objective, make_objective
from bench.engine.functional.norms import norm_of
from bench.engine.model_state import is_out_of_memory
from bench.engine.rejection import merge_rejection, spares_rejected


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
        transforms = spec.transforms
        self.forwards = spec.samples * (transforms.forwards if transforms else 1)
        """Forward passes of one evaluation of an iterate."""
        self.backwards = spec.samples * (transforms.backwards if transforms else 1)
        """Backward passes, likewise."""
        self._loss = make_objective(spec.params.loss, "targeted" if self.rule.aims else spec.goal)
        self._merges = spares_rejected(model)
        if self._merges:
            self._loss = _leave_rejection(self._loss)
        if isinstance(model, AdaptedModel):
            self._loss = model.make_objective(self._loss)

    def noise_keys(self, examples: Tensor) -> Tensor | None:
        """Return what keys the random transformations of examples; None if nothing is random.

        Args:
            examples: Ids of the examples, (n,), int64.

        Returns:
            Keys for `evaluate`, (n,), int64.
        """
        if self.spec.transforms is None or not self.spec.transforms.diversity:
            return None
        purpose = f"{self.spec.name} input diversity"
        return Noise(self.spec.seed, purpose, examples, torch.zeros_like(examples)).keys(examples)

    def evaluate(
        self, x: Tensor, known: AttackBatch, keys: Tensor | None = None
    ) -> tuple[StepInput, Tensor]:
        """Compute a rule's input at iterates.

        One NaN in a gradient makes every sum over it NaN, and with it the iterate for the rest of
        the search: such entries are set to 0, the slope of a pixel of which nothing is known. An
        iterate with logits that are not finite is no success, as it is none for the judge, and a
        loss that is not finite is set below every other, so that no rule keeps that iterate as its
        best.

        Args:
            x: Iterates (n, c, h, w).
            known: What the rule may read of their examples.
            keys: Keys of the rows' random transformations, (n,), if the attack has any.

        Returns:
            The rule's input, and the number of gradients of each row that were not finite, (n,).

        Raises:
            AccelerationError: The accelerated model raised anything but that memory ran out.
        """
        samples = self.spec.samples
        towards = known.y if self.rule.aims is None else known.aim
        (logits, loss, gradient), spoilt = self._sample(x, towards, known, keys, 0)
        for number in range(1, samples):
            again, more = self._sample(x, towards, known, keys, number)
            logits, loss, gradient = logits + again[0], loss + again[1], gradient + again[2]
            spoilt = spoilt + more
        if samples > 1:
            logits, loss, gradient = logits / samples, loss / samples, gradient / samples
        loss = loss.nan_to_num(-torch.inf, -torch.inf, -torch.inf)
        if self._merges:
            logits = merge_rejection(logits, known.label)
        fooled = reaches_goal(logits, known.y, self.spec.goal) & (logits.abs() < torch.inf).all(1)
        if self.rule.within is not None:
            fooled = fooled & self.rule.within(known, self.spec.params, self.spec.norm)
        return StepInput(logits, loss, gradient, fooled), spoilt

    def _sample(
        self, x: Tensor, towards: Tensor, known: AttackBatch, keys: Tensor | None, number: int
    ) -> tuple[PassResult, Tensor]:
        """Make one of the passes that are averaged, with a finite gradient.

        Of transformed copies, the mean gradient is that of the sample; logits and loss are those of
        the iterate itself. Also returns how many gradients of each row were not finite, (n,).
        """
        transforms = self.spec.transforms
        if transforms is None:
            return self._finite_pass(x, towards, known.label)
        copies = self._transformations(known, keys, number)
        (logits, loss, gradient), spoilt = self._finite_pass(x, towards, known.label, next(copies))
        if transforms.diversity:
            own = self._call(forward_pass, x, towards, known.label)
            logits, loss = own.logits, own.loss
        for transform in copies:
            again, more = self._finite_pass(x, towards, known.label, transform)
            gradient, spoilt = gradient + again.gradient, spoilt + more
        gradient = gradient / transforms.scales
        if transforms.translation:
            gradient = smooth_gradient(gradient, transforms.translation)
        return PassResult(logits, loss, gradient), spoilt

    def _transformations(
        self, known: AttackBatch, keys: Tensor | None, number: int
    ) -> Iterator[Callable[[Tensor], Tensor]]:
        """Yield what makes each copy of the iterates in sample `number`."""
        transforms = self.spec.transforms
        assert transforms is not None
        wanted = DRAWS * transforms.scales * self.spec.samples
        draws = None
        if keys is not None:  # a restart has draws of its own
            draws = hash_uniform(hash_keys(keys, known.restart), known.k, wanted)
        for copy in range(transforms.scales):
            first = DRAWS * (number * transforms.scales + copy)
            own = None if draws is None else draws[:, first : first + DRAWS]
            yield functools.partial(_transform, scale=0.5**copy, draws=own, transforms=transforms)

    def _finite_pass(
        self,
        x: Tensor,
        y: Tensor,
        label: Tensor,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[PassResult, Tensor]:
        """Make one pass with a finite gradient; also return whether it was not, (n,), 0 or 1."""
        if transform is None:
            observed = self._call(self._pass, x, y, label)
        else:
            observed = self._call(gradient_pass, x, y, label, transform)
        if not self.has_gradient:
            return observed, torch.zeros_like(y)
        spoilt = ~(norm_of(observed.gradient, "linf") < torch.inf)  # NaN is not below it
        if self.spec.adaptation is not None:  # a user's loss may lose its value alone
            spoilt = spoilt | ~observed.loss.isfinite()
        finite = observed.gradient.nan_to_num(0.0, 0.0, 0.0)
        return observed._replace(gradient=finite), spoilt.to(y.dtype)

    def _call(self, make_pass: Callable[..., PassResult], *inputs: Any) -> PassResult:
        """Make one pass of the accelerated model; name what it raises."""
        try:
            return make_pass(self._accelerated, self._loss, *inputs)
        except Exception as error:  # foreign code: the forward of the model
            if self._is_original or is_out_of_memory(error):
                raise
            raise AccelerationError(f"it raised {describe(error)}") from error


def _leave_rejection(objective: Objective) -> Objective:
    """Return an objective that leaves the label and the rejection of a detector at once."""
    return lambda logits, y, label: objective(merge_rejection(logits, label), y, label)


def _transform(
    x: Tensor, *, scale: float, draws: Tensor | None, transforms: InputTransforms
) -> Tensor:
    """Make one copy of iterates: darkened, then resized and padded as the draws say."""
    copy = x if scale == 1 else x * scale
    return copy if draws is None else resize_and_pad(copy, draws, transforms)
