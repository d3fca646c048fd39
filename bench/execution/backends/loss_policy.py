"""Policy for work units whose worker was lost: retry, then one eps at a time, then fail."""

from collections import Counter
from typing import Literal

from bench.execution.result_writer import unit_key
from bench.execution.work import WorkUnit

Decision = Literal["retry", "divide", "fail"]


class LossPolicy:
    """Decides what follows the loss of a worker, and remembers what was decided."""

    def __init__(self, tries: int) -> None:
        """Start without losses.

        Args:
            tries: Workers that the same cells of one chunk may cost before they are divided, or
                failed if they cannot be.
        """
        self.tries = tries
        self._losses: Counter[tuple[int, int, tuple[str, ...]]] = Counter()
        self._alone: set[str] = set()

    def decide(self, unit: WorkUnit, is_cause: bool) -> Decision:
        """Decide what follows the loss of the worker of a unit.

        Args:
            unit: Unit with the cells that were at work.
            is_cause: Whether nothing else can have caused the loss.

        Returns:
            "retry"; "divide", after which `divide` returns the units; "fail".
        """
        cells = [cell.identity for cell in unit.task.cells]
        self._losses[unit_key(unit)] += 1
        if not is_cause and self._losses[unit_key(unit)] < self.tries:
            return "retry"
        if len(cells) > 1 and not unit.task.linked:
            self._alone |= set(cells)
            return "divide"
        return "fail"

    def divide(self, unit: WorkUnit) -> list[WorkUnit]:
        """Divide a unit so that cells whose stream lost a worker are run alone.

        Args:
            unit: Any work unit.

        Returns:
            The cells that may share a stream, then each of the others; the unit itself if none
            of its cells must be run alone.
        """
        cells = [cell.identity for cell in unit.task.cells]
        alone = [cell for cell in cells if cell in self._alone]
        if not alone or len(cells) == 1 or unit.task.linked:
            return [unit]
        groups = [{cell} for cell in alone]
        if shared := set(cells) - self._alone:
            groups.insert(0, shared)
        work = unit.work / len(cells)
        return [
            unit._replace(task=unit.task.only(group), work=work * len(group)) for group in groups
        ]
