"""torchattacks, called as its README does; images in [0, 1], its normalisation left alone.

Source: Kim 2020, https://arxiv.org/abs/2010.01950
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from bench.speed.task import Contestant, Made, Run, Task, looped
from bench.speed.works import Work

NAME = "torchattacks"


def enter(work: Work) -> Iterator[Contestant]:
    known = work.attack in ("fgsm", "pgd", "bim", "mifgsm")
    yield Contestant(
        name=NAME,
        prepare=prepare,
        library=NAME,
        peer="torchattacks",
        note="its own random starts" if work.attack == "pgd" else "",
        refusal="" if known else f"no {work.attack} here",
    )


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
