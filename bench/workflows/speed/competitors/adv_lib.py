"""adversarial-library: one function, `pgd_linf`, with and without a random start.

It hands back the last iterate that fooled the model, and the clean image where none did; the image
after the last step is never asked, so of k steps k - 1 count. It has no FGSM (one step would hand
back the clean image) and no momentum.
It needs visdom, which builds only beside setuptools below 81: `pip install "setuptools<81" wheel`,
then `pip install --no-build-isolation adv-lib`.
Source: Rony and Ben Ayed 2020, version 0.2.8.
"""

from collections.abc import Iterator

from torch import Tensor

from bench.workflows.speed.setup import Contestant, Made, Run, Task, library, looped
from bench.workflows.speed.workloads import Work

LAST = "the last fooling iterate, the one after the last step unseen"
NOTES = {"pgd": f"its own random starts; {LAST}", "bim": LAST}


def enter(work: Work) -> Iterator[Contestant]:
    yield library(
        work,
        prepare,
        name="adversarial-library",
        distribution="adv-lib",
        peer="adv_lib",
        notes=NOTES,
    )


def prepare(task: Task) -> Run:
    from adv_lib.attacks import pgd_linf

    start = bool(getattr(task.params, "random_start", False))

    def attack(x: Tensor, y: Tensor, eps: float) -> Made:
        return Made(
            pgd_linf(
                task.model,
                x,
                y,
                eps,
                steps=task.steps,
                random_init=start,
                absolute_step_size=task.alpha(eps),
            )
        )

    return lambda rows: looped(task, rows, attack)
