"""Count the queries of an attack that asks the model for scores or labels.

A query is one image that the model is asked about: each row of a forward pass is one. Rules are
counted by the engine (`bench.engine.query_log`). An attack with a loop of its own is observed where
the model is called; which example a row belongs to is known only if the attack runs on one example
at a time, so that on larger batches its queries are unknown.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bench.core.contracts.attack import AttackSpec
from bench.core.contracts.types import Goal, Norm
from bench.engine.functional.logits import reaches_goal, widen
from bench.engine.functional.norms import distance_float64
from bench.engine.rejection import merge_rejection
from bench.suite.query_budgets import asks


def counts_queries(spec: AttackSpec) -> bool:
    """Return whether the queries of an attack are counted for each example.

    Those of a randomised model are not: which query made an example fall is a matter of chance.

    Args:
        spec: The attack as it runs.

    Returns:
        True if the attack asks a deterministic model for scores or labels.
    """
    return asks(spec.attack, spec.norm) and not spec.random


class QueryObserver:
    """What an attack on one example asked the model, and when the example fell."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        goal: Goal,
        norm: Norm,
        radii: Sequence[float],
        budgets: Sequence[int],
        spares_rejected: bool = False,
    ) -> None:
        """Start without queries.

        Args:
            x: The clean image, (1, c, h, w).
            y: Class to leave or to reach, (1,).
            goal: Goal of the attack.
            norm: Norm of the distances.
            radii: Radii within which the example may fall, rounding allowed for.
            budgets: Numbers of queries at which the least distance is recorded.
            spares_rejected: Whether the rejection of a detector is no success.
        """
        self.queries = 0
        self.fell = [torch.inf] * len(radii)
        """Number of the first query within each radius that reached the goal."""
        self.nearest = [torch.inf] * len(budgets)
        """Least distance of a query that reached the goal, within each budget."""
        self._x, self._y, self._goal, self._norm = x, y, goal, norm
        self._radii, self._budgets = radii, budgets
        self._merges = spares_rejected and goal == "untargeted"

    def record(self, images: Tensor, logits: Tensor) -> None:
        """Record the rows of one forward pass.

        Args:
            images: Images (n, c, h, w).
            logits: The model's answers (n, classes).
        """
        y = self._y.expand(len(images))
        valid = images.flatten(1).isfinite().all(1) & logits.isfinite().all(1)
        valid &= (images.flatten(1).amin(1) >= 0) & (images.flatten(1).amax(1) <= 1)
        answers = merge_rejection(widen(logits), y) if self._merges else widen(logits)
        won = reaches_goal(answers, y, self._goal) & valid
        far = distance_float64(images, self._x.expand_as(images), self._norm)
        for row in won.nonzero()[:, 0].tolist():
            at, distance = self.queries + row + 1, float(far[row])
            for index, radius in enumerate(self._radii):
                if distance <= radius:
                    self.fell[index] = min(self.fell[index], at)
            for index, budget in enumerate(self._budgets):
                if at <= budget:
                    self.nearest[index] = min(self.nearest[index], distance)
        self.queries += len(images)


@contextmanager
def observe_queries(model: nn.Module, observer: QueryObserver) -> Iterator[None]:
    """Observe every image that a model is asked about, by a hook on its forward pass.

    Args:
        model: The model that the attack is given.
        observer: Receives the images and the answers.

    Yields:
        While the queries are observed.
    """

    def on_forward(module: nn.Module, inputs: Any, output: Any) -> None:
        observer.record(inputs[0].detach(), output.detach())

    handle = model.register_forward_hook(on_forward)
    try:
        yield
    finally:
        handle.remove()
