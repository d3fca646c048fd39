"""Run both sides of a comparison on the same examples, and observe their calls of the model."""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from bench.core.contracts.attack import AttackSpec, ExternalAttack, IterativeAttack
from bench.core.contracts.rule import AttackBatch
from bench.core.contracts.types import Norm
from bench.core.rng import Noise
from bench.engine import timing
from bench.engine.functional import norms
from bench.evaluation import chunk, metrics
from bench.evaluation.crafting import Examples
from bench.evaluation.evaluator import Evaluator
from bench.evaluation.metrics import Outcomes
from bench.suite import plan

CountRobust = Callable[[pd.DataFrame], Outcomes]
"""Records -> whether each example is robust, indexed by id."""


class Side(NamedTuple):
    """One attack at one eps, and the model it attacks; outcomes are judged on the model itself."""

    spec: AttackSpec
    model: nn.Module
    rows: int
    double: bool = False
    """Whether the attacked model computes in float64."""
    then: Callable[[Tensor], Tensor] | None = None
    """Applied to the logits (n, classes) that the attack sees."""


class ExperimentSetup(NamedTuple):
    """Two sides, and how the outcomes of each are counted."""

    ours: Side
    reference: Side
    count_ours: CountRobust = metrics.robust_examples
    count_reference: CountRobust = metrics.robust_examples


class ObservedBehaviour(NamedTuple):
    """Observations of an attack; None where it could not be observed."""

    start: Tensor | None = None
    """Input of the first gradient for each example of the data, (n, c, h, w); the clean image of an
    example that was not attacked."""
    steps: int | None = None
    """Number of gradients computed."""
    alpha: float | None = None
    """Largest norm of the first step, in the threat's norm."""
    violations: bool = False
    """Whether any image broke the threat model."""
    levels: bool = False
    """Whether all pixels are multiples of 1/255."""


def build_attacked_model(side: Side) -> nn.Module:
    """Build the model that a side's attack sees.

    Args:
        side: Model, precision and output function.

    Returns:
        The model, wrapped where the side asks for it.
    """
    model = _DoubleModel(side.model) if side.double else side.model
    return model if side.then is None else _OutputModel(model, side.then)


class _DoubleModel(nn.Module):
    """A model that computes logits and gradients in float64."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).double()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x.double())
        return logits


class _OutputModel(nn.Module):
    """A model whose logits pass through a function."""

    def __init__(self, model: nn.Module, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.then = model, then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.model(x))


class ExperimentRunner:
    """Run sides on the attacked examples; each side is run once."""

    def __init__(
        self, evaluator: Evaluator, ours: plan.AttackTask, reference: plan.AttackTask
    ) -> None:
        parts = [evaluator.select_examples(ours, first, last) for first, last in evaluator.chunks()]
        self.all = Examples(*map(torch.cat, zip(*parts, strict=True)))
        wanted = self.all.clean_pred == self.all.label
        if ours.spec.goal == "targeted":
            wanted &= self.all.target != self.all.label
        self.chosen = _rows(self.all, wanted)
        self.judge = evaluator.models[ours.model].model
        model = evaluator.pool.load_source(ours).model
        own, other = (
            Side(task.spec, model, evaluator.pool.attack_rows(task)) for task in (ours, reference)
        )
        self.base = ExperimentSetup(own, other)
        """Both sides unchanged."""
        self.known: list[tuple[Side, pd.DataFrame]] = []

    def outcomes(self, setup: ExperimentSetup) -> tuple[Outcomes, Outcomes]:
        """Return which examples are robust under either side.

        Args:
            setup: Both sides.

        Returns:
            Outcomes under ours and under the reference, indexed by id.
        """
        ours, reference = self.records(setup.ours), self.records(setup.reference)
        return setup.count_ours(ours), setup.count_reference(reference)

    def records(self, side: Side) -> pd.DataFrame:
        """Run a side, or return the records of its earlier run.

        Args:
            side: Attack and model.

        Returns:
            Records of the attacked examples, indexed by id.
        """
        for known, records in self.known:
            if known == side:
                return records
        measured = self._run(side, self.chosen)
        self.known.append((side, measured.records[0].set_index("example")))
        return self.known[-1][1]

    def observe(self, side: Side) -> ObservedBehaviour:
        """Run a side and observe its start, steps and images.

        Args:
            side: Attack and model.

        Returns:
            The observations.
        """
        if isinstance(side.spec.attack, ExternalAttack):
            return self._observe_external(side)
        if isinstance(side.spec.attack, IterativeAttack) and side.spec.attack.budget == "fixed":
            return self._observe_rule(side)
        return self._summarize(side, [self._run(side, self.chosen)])

    def _observe_external(self, side: Side) -> ObservedBehaviour:
        """Observe an external attack batch by batch, by hooks on its model."""
        starts, runs, counts, lengths = self.all.x.clone(), [], [], []
        for at in torch.arange(len(self.chosen.id), device=starts.device).split(side.rows):
            part, hook = _rows(self.chosen, at), _GradientHook()
            with hook.attached(side.model):
                runs.append(self._run(side, part))
            if not hook.first or hook.first[0].shape != part.x.shape:
                continue
            starts[part.id] = hook.first[0].to(starts)
            counts.append(hook.count)
            if len(hook.first) == 2 and hook.first[1].shape == part.x.shape:
                step = norms.distance(hook.first[1], hook.first[0], side.spec.norm)
                lengths.append(float(step.max()))
        observed = self._summarize(side, runs)
        if len(counts) < len(runs):
            return observed
        alpha = _rounded(max(lengths, default=0.0))
        return observed._replace(start=starts, steps=max(counts), alpha=alpha)

    def _observe_rule(self, side: Side) -> ObservedBehaviour:
        """Observe a rule's start in its `init`: CUDA graphs replay model calls without hooks."""
        attack, starts = side.spec.attack, self.all.x.clone()
        assert isinstance(attack, IterativeAttack)
        rule = attack.rule

        def init(items: AttackBatch, noise: Noise, params: Any, norm: Norm) -> Any:
            state = rule.init(items, noise, params, norm)
            first = items.restart == 0
            starts[noise.examples.to(first.device)[first]] = state.x[first]
            return state

        observed = dataclasses.replace(attack, rule=dataclasses.replace(rule, init=init))
        hooked = side._replace(spec=dataclasses.replace(side.spec, attack=observed))
        return self._summarize(side, [self._run(hooked, self.chosen)])._replace(start=starts)

    def _summarize(self, side: Side, runs: list[chunk.VerifiedChunk]) -> ObservedBehaviour:
        """Store the records of all batches, and check the images."""
        frame = pd.concat([run.records[0] for run in runs]).set_index("example")
        images = torch.cat([run.x_adv[0] for run in runs])
        self.known.append((side, frame))
        return ObservedBehaviour(
            violations=bool((frame["violation"].astype(str) != "").any()),
            levels=bool(((images * 255).round() / 255 - images).abs().max() <= LEVEL),
        )

    def _run(self, side: Side, examples: Examples) -> chunk.VerifiedChunk:
        floor, source = timing.Floor(0.0, 0.0), build_attacked_model(side)  # timing is not needed
        return chunk.evaluate_chunk(
            self.judge, side.spec, examples, side.rows, floor, source=source
        )


def _rounded(length: float) -> float | None:
    """Round to four digits, the accuracy of a difference of float32 images; None for 0."""
    return float(f"{length:.4g}") or None


LEVEL = 1e-6
"""Tolerance within which a pixel is a multiple of 1/255."""


class _GradientHook:
    """Count the calls of a model that require an input gradient, and store the first inputs."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[Tensor] = []
        """Inputs of the first two calls."""

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and torch.is_grad_enabled() and inputs[0].requires_grad:
            self.count += 1
            if len(self.first) < 2:
                self.first.append(inputs[0].detach().clone())

    def __deepcopy__(self, memo: dict[int, Any]) -> "_GradientHook":
        """Return self, so that calls of a copied model are counted as well."""
        return self

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        handle = model.register_forward_pre_hook(self)
        try:
            yield
        finally:
            handle.remove()


def _rows(examples: Examples, chosen: Tensor) -> Examples:
    return Examples(*(field[chosen] for field in examples))
