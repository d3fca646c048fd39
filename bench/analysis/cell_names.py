"""Names of cells as tables and the command line spell them: MODEL/ATTACK/EPS."""

from collections.abc import Sequence
from typing import NamedTuple

from bench.core.errors import SuiteError, nearest
from bench.suite import plan


class PlannedCell(NamedTuple):
    """A cell, and the task that plans it."""

    task: plan.AttackTask
    cell: plan.Cell


def format_cell_name(model: str, attack: str, eps_text: str) -> str:
    """Name a cell.

    Args:
        model: Label of the model.
        attack: Label of the attack.
        eps_text: eps as the suite spells it.

    Returns:
        MODEL/ATTACK/EPS.
    """
    return f"{model}/{attack}/{eps_text}"


def find_cell(name: str, tasks: Sequence[plan.AttackTask]) -> PlannedCell:
    """Find a cell by its name.

    Args:
        name: MODEL/ATTACK/EPS, with eps as a number or as the suite spells it. The model may be
            omitted if there is one only, the eps if the attack has one only.
        tasks: Those of the plan.

    Returns:
        The cell and its task.

    Raises:
        SuiteError: No cell has the name, or several have it.
    """
    one_model = len({task.model for task in tasks}) == 1
    cells = [PlannedCell(task, cell) for task in tasks for cell in task.cells]
    fits = [each for each in cells if name in _names(each, one_model)]
    if not fits:
        known = nearest(name, [_full_name(each.cell) for each in cells])
        raise SuiteError(f"cell '{name}': expected MODEL/ATTACK/EPS; {known}")
    if len(fits) > 1:
        both = " and ".join(f"attack '{each.cell.attack}'" for each in fits[:2])
        raise SuiteError(f"cell '{name}' could be of {both}; write MODEL/ATTACK/EPS in full")
    return fits[0]


def _names(planned: PlannedCell, one_model: bool) -> set[str]:
    """List every name by which a cell may be found."""
    task, cell = planned
    tails = {f"/{cell.eps_text}", f"/{cell.eps:g}"} | ({""} if len(task.cells) == 1 else set())
    heads = {f"{cell.model}/"} | ({""} if one_model else set())
    return {f"{head}{cell.attack}{tail}" for head in heads for tail in tails}


def _full_name(cell: plan.Cell) -> str:
    return format_cell_name(cell.model, cell.attack, cell.eps_text)


def check_comparable(ours: plan.Cell, reference: plan.Cell) -> None:
    """Check that two cells attack the same model under the same threat model.

    Args:
        ours: One cell.
        reference: The other cell.

    Raises:
        SuiteError: They differ in model, norm, eps, goal, target or source, or eps is 0.
    """
    pair = f"cells '{_full_name(ours)}' and '{_full_name(reference)}'"
    if ours == reference:
        raise SuiteError(f"cell '{_full_name(ours)}': expected two cells, got one twice")
    for what in ("model", "norm", "eps", "goal", "target", "source"):
        mine, theirs = getattr(ours, what), getattr(reference, what)
        if mine != theirs:
            difference = f"expected the same {what} on both sides, got {mine} and {theirs}"
            raise SuiteError(f"{pair}: {difference}")
    if ours.eps == 0:
        raise SuiteError(f"{pair}: expected an eps above 0, where something is attacked")
