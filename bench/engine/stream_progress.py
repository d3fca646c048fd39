"""Report how many passes the engine's loop makes and is expected to make still."""

import torch
from torch import Tensor

from bench.core.contracts.attack import AttackSpec
from bench.engine.active_rows import ActiveBatch
from bench.engine.progress import PassCounter, find_counter
from bench.engine.step_evaluator import StepEvaluator
from bench.engine.survival import SurvivalForecast


class StreamProgress:
    """The passes of one stream. Reads what the loop has read anyway, and asks no device."""

    def __init__(
        self, counter: PassCounter, spec: AttackSpec, rounds: int, evaluator: StepEvaluator
    ) -> None:
        """Start at no passes.

        Args:
            counter: Receives the passes.
            spec: An iterative attack and its params.
            rounds: Restarts of each item.
            evaluator: Says how many passes a step takes.
        """
        self._counter = counter
        self._steps, self._rounds = int(spec.params.steps), rounds
        self._stops = spec.stop == "first-success"
        backwards = evaluator.backwards if evaluator.has_gradient else 0
        self._passes = (evaluator.forwards + backwards) / 2
        self._finished: list[tuple[Tensor, Tensor, Tensor]] = []
        nested = spec.sweep == "nested"
        self._forecast = SurvivalForecast(spec.eps, self._steps * rounds, nested, self._stops)
        counter.begin()

    def add_steps(self, row_steps: float) -> None:
        """Count steps.

        Args:
            row_steps: Steps of all rows together.
        """
        self._counter.add(row_steps * self._passes)

    def add_rows(self, rows: int, left: int) -> None:
        """Count rows of an attack of one step, and report if the last report was long ago.

        Args:
            rows: Rows that were finished.
            left: Those that wait, perhaps less than 0.
        """
        self.add_steps(rows)
        if self._counter.is_due():
            self._counter.report(max(left, 0) * self._passes)

    def add_turn(
        self, item: Tensor, k: Tensor, left: Tensor, won: Tensor, waiting: Tensor,
        overflow: ActiveBatch | None,
    ) -> None:  # fmt: skip
        """Note where the rows are after some steps, and report if the last report was long ago.

        Args:
            item: Their items, (n, 3).
            k: Steps that they made in their restart, (n,).
            left: Whether they go on, (n,), bool.
            won: Whether they succeeded and stopped, (n,), bool.
            waiting: Items that wait, (m, 3); these five on the CPU.
            overflow: Rows that wait since memory ran out.
        """
        if not left.all():
            self._finished.append((item[~left], k[~left], won[~left]))
        if not self._counter.is_due():
            return
        self._add_finished()
        items, made = [item[left], waiting], [k[left], torch.zeros_like(waiting[:, 0])]
        if overflow is not None:
            items.append(overflow.item.cpu())
            made.append(overflow.known.k.cpu())
        alive = torch.cat(items)
        age = alive[:, 2] * self._steps + torch.cat(made)
        self._counter.report(self._forecast.count_left(alive[:, 1], age) * self._passes)

    def _add_finished(self) -> None:
        """Add the rows that left since the last report to the forecast."""
        for item, k, won in self._finished:
            age = item[:, 2] * self._steps + k
            ends = won | (item[:, 2] + 1 >= self._rounds)  # others go on in another restart
            self._forecast.add_finished(item[ends, 1], age[ends], won[ends])
        self._finished.clear()


def open_progress(spec: AttackSpec, rounds: int, evaluator: StepEvaluator) -> StreamProgress | None:
    """Open the progress of a stream.

    Args:
        spec: An iterative attack and its params.
        rounds: Restarts of each item.
        evaluator: Evaluates its iterates.

    Returns:
        The progress; None if nobody listens.
    """
    counter = find_counter()
    return None if counter is None else StreamProgress(counter, spec, rounds, evaluator)
