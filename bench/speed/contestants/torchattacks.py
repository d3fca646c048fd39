"""torchattacks, called as its README does; images in [0, 1], its normalisation left alone.

Source: Kim 2020, https://arxiv.org/abs/2010.01950
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from bench.speed.task import Contestant, Made, Run, Task, library, looped
from bench.speed.works import Work

NAME = "torchattacks"
NOTES = {"fgsm": "", "bim": "", "mifgsm": "", "pgd": "its own random starts"}


def enter(work: Work) -> Iterator[Contestant]:
    yield library(work, prepare, name=NAME, distribution=NAME, peer="torchattacks", notes=NOTES)


def prepare(task: Task) -> Run:
    def attack(x: Tensor, y: Tensor, eps: float) -> Made:
        return Made(_attack(task, eps)(x, y))

    return lambda rows: looped(task, rows, attack)


def _attack(task: Task, eps: float) -> Any:
    import torchattacks

    match task.work.attack:
        case "fgsm":
            return torchattacks.FGSM(task.model, eps=eps)
        case "pgd":
            return torchattacks.PGD(
                task.model,
                eps=eps,
                alpha=task.alpha(eps),
                steps=task.steps,
                random_start=task.params.random_start,
            )
        case "bim":
            return torchattacks.BIM(task.model, eps=eps, alpha=task.alpha(eps), steps=task.steps)
        case _:
            return torchattacks.MIFGSM(
                task.model,
                eps=eps,
                alpha=task.alpha(eps),
                steps=task.steps,
                decay=task.params.decay,
            )
