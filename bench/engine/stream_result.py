"""Result of an attack: images, passes and steps of every example at every eps."""

from typing import NamedTuple

import torch
from torch import Tensor

from bench.core.contracts.attack import AttackSpec
from bench.engine.active_rows import ActiveBatch
from bench.engine.functional.norms import per_row
from bench.engine.step_evaluator import StepEvaluator


class StreamResult(NamedTuple):
    """Result of an attack: e epsilons in the spec's order, n examples in the caller's."""

    x_adv: Tensor
    """(e, n, *input)"""
    forwards: Tensor
    """Forward passes of each example at each eps, (e, n), float64; a pass for several eps is
    divided equally among them."""
    backwards: Tensor
    """Gradients with respect to the input, likewise."""
    first_success: Tensor
    """Steps made before the first successful iterate, (e, n), int64; -1 if there was none. The
    judge evaluates the last iterate."""
    losses: Tensor | None
    """Loss at each iterate of the last restart, (e, n, steps), NaN where there was none. None if no
    trace was requested."""
    rows: int
    """Rows a pass at the end: fewer than requested where memory ran out."""
    nonfinite: Tensor
    """Gradients of each example at each eps with entries that were not finite and so set to 0,
    (e, n), int64. A gradient for several eps counts at each."""
    queries: Tensor
    """Queries of the model until each example was first seen to fall, (e, n), float64; infinite if
    it was not, NaN where a smaller eps had made it fall. A search that runs once has the radii of
    the spec in place of e eps."""
    nearest: Tensor
    """Least distance that a search found within each of the spec's b budgets of queries, (n, b);
    infinite if it found none."""


def allocate_result(x: Tensor, spec: AttackSpec) -> StreamResult:
    """Allocate the result of an attack.

    Args:
        x: Clean images (n, c, h, w).
        spec: The attack with all eps.

    Returns:
        A result without passes and successes, whose images are not initialised.
    """
    e, n = len(spec.eps), len(x)
    counts = torch.zeros(e, n, dtype=torch.float64, device=x.device)
    never = torch.full((e, n), -1, dtype=torch.int64, device=x.device)
    traced_shape = (e, n, spec.params.steps)
    losses = x.new_full(traced_shape, torch.nan) if spec.trace else None
    images = x.new_empty(e, *x.shape)  # every item is written when it leaves
    nonfinite = torch.zeros_like(never)
    fell = torch.full((len(spec.radii) or e, n), torch.inf, dtype=torch.float64, device=x.device)
    nearest = x.new_full((n, len(spec.budgets)), torch.inf)
    return StreamResult(images, counts, counts.clone(), never, losses, 0, nonfinite, fell, nearest)


class ResultStore:
    """Stores the results of rows that leave, without asking a GPU for a value."""

    def __init__(self, x: Tensor, spec: AttackSpec, evaluator: StepEvaluator) -> None:
        """Allocate the result.

        Args:
            x: Clean images (n, c, h, w).
            spec: The attack with all eps.
            evaluator: Evaluates the iterates; says what an evaluation costs.
        """
        self.out = allocate_result(x, spec)
        self.nearest = x.new_full(self.out.forwards.shape, torch.inf)
        """Least distance that a search found at each eps, (e, n); infinite while it found none."""
        self._spec, self._evaluator, self._examples = spec, evaluator, len(x)
        self._stops = spec.stop == "first-success"
        self._seeks = evaluator.rule.seeks
        self._logs = self._seeks and bool(spec.radii or spec.budgets)

    def store(self, batch: ActiveBatch, x: Tensor, won: bool) -> None:
        """Store rows that leave.

        Flattened, a tensor of the result is a view of it. A pair of example and
        eps is never in a batch twice.

        Args:
            batch: The rows.
            x: Their images, (rows, c, h, w).
            won: Whether all succeeded, also those of which no iterate did.
        """
        example, eps, restart = batch.item.unbind(1)
        at = torch.add(example, eps, alpha=self._examples)
        passes = batch.known.k
        if self._stops:
            passes = passes + (batch.first >= 0)
        passes = passes.double()
        forwards, first = self.out.forwards.flatten(), self.out.first_success.flatten()
        forwards.index_add_(0, at, passes, alpha=self._evaluator.forwards)
        if self._evaluator.has_gradient:
            backwards = self.out.backwards.flatten()
            backwards.index_add_(0, at, passes, alpha=self._evaluator.backwards)
            self.out.nonfinite.flatten().index_add_(0, at, batch.nonfinite)
        self._store_queries(batch, at, forwards.index_select(0, at), won)
        before = first.index_select(0, at)
        first.index_copy_(0, at, torch.where(before < 0, batch.first, before))
        images = self.out.x_adv.flatten(0, 1)
        if self._seeks:
            least = self.nearest.flatten()
            before = least.index_select(0, at)
            nearer = (batch.state.nearest < before) | (restart == 0)
            least.index_copy_(0, at, torch.where(nearer, batch.state.nearest, before))
            x = torch.where(per_row(nearer, x), x, images.index_select(0, at))
        images.index_copy_(0, at, x)

    def _store_queries(self, batch: ActiveBatch, at: Tensor, made: Tensor, won: bool) -> None:
        """Store at which query rows fell; `made` is the number of all that they made."""
        if self._logs:
            example = batch.item[:, 0]
            self.out.queries.index_copy_(1, example, batch.log.fell.T)
            self.out.nearest.index_copy_(0, example, batch.log.nearest)
            return
        queries = self.out.queries.flatten()
        seen = torch.add(batch.log.before, batch.first + 1, alpha=self._spec.samples)
        fell = torch.where(batch.first >= 0, seen, made if won else torch.inf)
        queries.index_copy_(0, at, torch.minimum(queries.index_select(0, at), fell))
