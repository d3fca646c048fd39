"""A cell by the name that tables give it: MODEL/ATTACK/EPS."""

from collections.abc import Sequence
from typing import NamedTuple

from bench.core.errors import SuiteError, nearest
from bench.suite import plan


class PlannedCell(NamedTuple):
    """A cell, and the task that plans it."""

    task: plan.Task
    cell: plan.Cell


def format_cell_name(model: str, attack: str, eps_text: str) -> str:
    """What a cell is called."""
    return f"{model}/{attack}/{eps_text}"


def find_cell(name: str, tasks: Sequence[plan.Task]) -> PlannedCell:
    """The cell called `name`; the model may be left out where there is but one, the eps where the
    attack has but one, and eps is a number or as the suite wrote it.

    Raises: SuiteError with the nearest names if there is none, or more than one.
    """
    one = len({task.model for task in tasks}) == 1
    cells = [PlannedCell(task, cell) for task in tasks for cell in task.cells]
    fits = [each for each in cells if name in _names(each, one)]
    if not fits:
        known = nearest(name, [_name(each.cell) for each in cells])
        raise SuiteError(f"cell '{name}': expected MODEL/ATTACK/EPS; {known}")
    if len(fits) > 1:
        both = " and ".join(f"attack '{each.cell.attack}'" for each in fits[:2])
        raise SuiteError(f"cell '{name}' could be of {both}; write MODEL/ATTACK/EPS in full")
    return fits[0]


def _names(named: PlannedCell, one_model: bool) -> set[str]:
    task, cell = named
    tails = {f"/{cell.eps_text}", f"/{cell.eps:g}"} | ({""} if len(task.cells) == 1 else set())
    heads = {f"{cell.model}/"} | ({""} if one_model else set())
    return {f"{head}{cell.attack}{tail}" for head in heads for tail in tails}


def _name(cell: plan.Cell) -> str:
    return format_cell_name(cell.model, cell.attack, cell.eps_text)


def check_comparable(ours: plan.Cell, reference: plan.Cell) -> None:
    """Raises: SuiteError unless two cells put the same question to the same model."""
    pair = f"cells '{_name(ours)}' and '{_name(reference)}'"
    if ours == reference:
        raise SuiteError(f"cell '{_name(ours)}': expected two cells, got one twice")
    for what in ("model", "norm", "eps", "goal", "target", "source"):
        mine, theirs = getattr(ours, what), getattr(reference, what)
        if mine != theirs:
            told = f"expected the same {what} on both sides, got {mine} and {theirs}"
            raise SuiteError(f"{pair}: {told}")
    if ours.eps == 0:
        raise SuiteError(f"{pair}: expected an eps above 0, where something is attacked")
