"""Foolbox: its model wrapper with bounds (0, 1); its own `success` is its count.

Source: Rauber et al. 2020, https://doi.org/10.21105/joss.02607
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from bench.workflows.speed.setup import Contestant, Made, Run, Task, library, looped
from bench.workflows.speed.workloads import Work

NOTES = {
    "fgsm": "",
    "bim": "",
    "pgd": "its own random starts",
    "mifgsm": "another rule: sums the signs of gradients, not gradients over their l1 norm",
}


def enter(work: Work) -> Iterator[Contestant]:
    yield library(
        work, prepare, name="Foolbox", distribution="foolbox", peer="foolbox", notes=NOTES
    )


def prepare(task: Task) -> Run:
    import foolbox

    model = foolbox.PyTorchModel(task.model, bounds=(0, 1), device=task.device)
    attacks = {eps: _attack(foolbox.attacks, task, eps) for eps in task.eps}

    def attack(x: Tensor, y: Tensor, eps: float) -> Made:
        # It asks the model about the clipped images and hands the answer back.
        _, clipped, success = attacks[eps](model, x, y, epsilons=eps)
        return Made(clipped, len(x) - int(success.sum()))

    return lambda rows: looped(task, rows, attack)


def _attack(attacks: Any, task: Task, eps: float) -> Any:
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
