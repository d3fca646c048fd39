"""Foolbox: its model wrapper with bounds (0, 1); its own `success` is its count.

Source: Rauber et al. 2020, https://doi.org/10.21105/joss.02607
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from bench.workflows.speed.setup import (
    BatchResult,
    Competitor,
    RaceTask,
    RunWork,
    library_competitor,
    run_library_loop,
)
from bench.workflows.speed.workloads import Workload

NOTES = {
    "fgsm": "",
    "bim": "",
    "pgd": "its own random starts",
    "mifgsm": "another rule: sums the signs of gradients, not gradients over their l1 norm",
}


def list_variants(work: Workload) -> Iterator[Competitor]:
    """List the ways in which this competitor runs a workload.

    Args:
        work: The workload.

    Yields:
        Competitors; one that cannot run the workload says why.
    """
    yield library_competitor(
        work, prepare, name="Foolbox", distribution="foolbox", peer="foolbox", notes=NOTES
    )


def prepare(task: RaceTask) -> RunWork:
    """Prepare the work; see `Competitor.prepare`.

    Args:
        task: Model, images and parameters.

    Returns:
        The work to be timed.
    """
    import foolbox

    model = foolbox.PyTorchModel(task.model, bounds=(0, 1), device=task.device)
    attacks = {eps: _attack(foolbox.attacks, task, eps) for eps in task.eps}

    def attack(x: Tensor, y: Tensor, eps: float) -> BatchResult:
        # Foolbox evaluates the clipped images itself and returns the success.
        _, clipped, success = attacks[eps](model, x, y, epsilons=eps)
        return BatchResult(clipped, len(x) - int(success.sum()))

    return lambda rows: run_library_loop(task, rows, attack)


def _attack(attacks: Any, task: RaceTask, eps: float) -> Any:
    settings: dict[str, Any] = {"abs_stepsize": task.alpha(eps), "steps": task.steps}
    match task.work.attack:
        case "fgsm":
            return attacks.LinfFastGradientAttack(random_start=False)
        case "pgd":
            start = task.params.random_start
            return attacks.LinfProjectedGradientDescentAttack(random_start=start, **settings)
        case "bim":
            return attacks.LinfBasicIterativeAttack(random_start=False, **settings)
        case _:
            decay = task.params.decay
            return attacks.LinfMomentumIterativeFastGradientMethod(momentum=decay, **settings)
