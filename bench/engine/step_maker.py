"""Make the steps of an attack's rows: passes, the rule's step, the test for success, the counts."""

from typing import Any

import torch
from torch import Tensor

from bench.core.contracts.attack import AttackSpec, IterativeAttack
from bench.core.contracts.rule import AttackBatch, StepInput
from bench.engine.active_rows import ActiveBatch
from bench.engine.functional.norms import per_row
from bench.engine.query_log import update_log
from bench.engine.step_evaluator import StepEvaluator, count_nonfinite
from bench.engine.tensor_tree import map_tensors


class StepMaker:
    """Makes steps of unfinished rows. Uses tensors alone, so that a GPU can replay it.

    A row that succeeds and stops keeps its iterate; what else its state holds is of no use then and
    may change, unless the rule searches for the least distance.
    """

    def __init__(
        self, evaluator: StepEvaluator, spec: AttackSpec, like: Tensor, asynchronous: bool
    ) -> None:
        """Take what the steps depend on beside the rows themselves.

        Args:
            evaluator: Evaluates iterates.
            spec: An iterative attack and its params.
            like: Tensor whose dtype and device the images have.
            asynchronous: Whether the host should ask the device for values as rarely as possible.
        """
        assert isinstance(spec.attack, IterativeAttack)
        self.spec, self.rule, self.evaluator = spec, spec.attack.rule, evaluator
        self.stops, self.asynchronous = spec.stop == "first-success", asynchronous
        self.radii = like.new_tensor(spec.radii or spec.eps)
        self.budgets = like.new_tensor(spec.budgets, dtype=torch.float64)
        self.logs = self.rule.seeks and bool(spec.radii or spec.budgets)

    def make_steps(self, batch: ActiveBatch, number: int) -> ActiveBatch:
        """Make steps of rows.

        Args:
            batch: Rows of which none has finished, each with at least `number` steps left.
            number: Number of steps, at least 1.

        Returns:
            The rows after them. Tensors that do not change are those of `batch` themselves.
        """
        if self.asynchronous:
            # Rows that are not in use are computed, too: none makes more steps than there are.
            k = batch.known.k.clamp_max(self.spec.params.steps - number)
            batch = batch._replace(known=batch.known._replace(k=k))
        sizes: list[Tensor] = []
        active: list[Tensor | None] = [None]
        for _ in range(number):
            observed, found = self.evaluate(batch)
            sizes += found
            batch, going = self._advance(batch, observed, active[-1])
            active.append(going)
        return self._count(batch, sizes, active)

    def make_traced_step(self, batch: ActiveBatch) -> tuple[ActiveBatch, Tensor]:
        """Make one step of rows.

        Args:
            batch: Rows of which none has finished.

        Returns:
            The rows after it, and the loss at their iterates before it, (rows,).
        """
        observed, sizes = self.evaluate(batch)
        after, going = self._advance(batch, observed, None)
        return self._count(after, sizes, [None, going]), observed.loss

    def evaluate(self, batch: ActiveBatch) -> tuple[StepInput, list[Tensor]]:
        """Evaluate the iterates of rows.

        Args:
            batch: The rows.

        Returns:
            As `StepEvaluator.evaluate`.
        """
        keys = batch.keys if batch.keys.dim() == 1 else None
        return self.evaluator.evaluate(batch.state.x, batch.known, keys)

    def _advance(
        self, batch: ActiveBatch, observed: StepInput, active: Tensor | None
    ) -> tuple[ActiveBatch, Tensor | None]:
        """Make one step of the active rows, all if None; also return which remain active."""
        known, params = batch.known, self.spec.params
        stepped = self.rule.next(batch.state, observed, known, params, self.spec.norm)
        fooled = self._found_in_ball(stepped, known) if self.rule.seeks else observed.fooled
        log = batch.log
        if self.logs:
            nearest = torch.minimum(stepped.nearest, known.nearest)
            queries = (known.k + 1) * self.spec.samples
            log = update_log(log, queries, nearest, active, self.radii, self.budgets)
        if not self.stops:
            first = torch.where(fooled & (batch.first < 0), known.k, batch.first)
            known = known._replace(k=known.k + 1)
            return batch._replace(known=known, state=stepped, first=first, log=log), None
        # Of two truth values, one is greater where it is true and the other is not.
        going = ~fooled if active is None else torch.gt(active, fooled)
        state = self._keep_finished(batch.state, stepped, active, going)
        known = known._replace(k=known.k + going)
        return batch._replace(known=known, state=state, log=log), going

    def _keep_finished(self, state: Any, stepped: Any, active: Tensor | None, going: Tensor) -> Any:
        """Keep the iterate of rows that succeeded; of a search, its state after that step."""
        if self.rule.seeks:
            if active is None:
                return stepped
            return map_tensors(
                lambda old, new: new if new is old else torch.where(per_row(active, new), new, old),
                state,
                stepped,
            )
        if not self.asynchronous and bool(going.all()):
            return stepped
        return stepped._replace(x=torch.where(per_row(going, state.x), stepped.x, state.x))

    def _count(
        self, batch: ActiveBatch, sizes: list[Tensor], active: list[Tensor | None]
    ) -> ActiveBatch:
        """Add what several steps found to the counts of the rows.

        Args:
            batch: The rows after the steps.
            sizes: Magnitudes of all passes.
            active: Which rows were active before the first step, and after each.
        """
        if self.stops and active[-1] is not None:  # others stopped at the step of their success
            batch = batch._replace(first=torch.where(active[-1], batch.first, batch.known.k))
        made, passes = [each for each in active[1:-1] if each is not None], None
        if made and sizes:
            made = [torch.ones_like(made[0]), *made]
            passes = torch.stack([each for each in made for _ in range(len(sizes) // len(made))])
        counted = count_nonfinite(sizes, passes)
        return (
            batch
            if isinstance(counted, int)
            else batch._replace(nonfinite=batch.nonfinite + counted)
        )

    def _found_in_ball(self, state: Any, known: AttackBatch) -> Tensor:
        """Return whether a search has found an adversarial example in the ball."""
        near: Tensor = (state.nearest <= known.eps) & (state.nearest < torch.inf)
        return near
