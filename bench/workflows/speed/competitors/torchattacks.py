"""torchattacks, called as its README does; images in [0, 1], its normalisation left alone.

Source: Kim 2020, https://arxiv.org/abs/2010.01950
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

NAME = "torchattacks"
STARTS = "its own random starts, drawn for a batch as a whole"
NOTES = {
    "fgsm": "",
    "bim": "",
    "mifgsm": "",
    "pgd": "its own random starts",
    "apgd": STARTS,
    "apgd_t": STARTS,
    "fab_t": "returns the nearest adversarial image it found, or the clean one",
    "square": STARTS,
    "autoattack": "its APGD, APGDT, FAB and Square with the official steps, by its MultiAttack",
}


def list_variants(work: Workload) -> Iterator[Competitor]:
    """List the ways in which this competitor runs a workload.

    Args:
        work: The workload.

    Yields:
        Competitors; one that cannot run the workload says why.
    """
    yield library_competitor(
        work, prepare, name=NAME, distribution=NAME, peer="torchattacks", notes=NOTES
    )


def prepare(task: RaceTask) -> RunWork:
    """Prepare the work; see `Competitor.prepare`.

    Args:
        task: Model, images and parameters.

    Returns:
        The work to be timed.
    """

    def attack(x: Tensor, y: Tensor, eps: float) -> BatchResult:
        return BatchResult(_attack(task, eps)(x, y))

    return lambda rows: run_library_loop(task, rows, attack)


def _attack(task: RaceTask, eps: float) -> Any:
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
        case "mifgsm":
            return torchattacks.MIFGSM(
                task.model,
                eps=eps,
                alpha=task.alpha(eps),
                steps=task.steps,
                decay=task.params.decay,
            )
        case "autoattack":
            names = ("apgd", "apgd_t", "fab_t", "square")
            parts = [_part(name, task, eps) for name in names]
            return torchattacks.MultiAttack(parts)
        case name:
            return _part(name, task, eps)


def _part(name: str, task: RaceTask, eps: float) -> Any:
    """One of AutoAttack's parts, with the work's steps in place of the library's ten."""
    import torchattacks

    steps, seed = task.params.steps, 0
    queries = task.params.queries if task.work.attack == "autoattack" else steps
    classes = min(getattr(task.params, "targets", 9) + 1, task.classes)
    given = {"eps": eps, "seed": seed}
    match name:
        case "apgd":
            return torchattacks.APGD(task.model, steps=steps, **given)
        case "apgd_t":
            return torchattacks.APGDT(task.model, steps=steps, n_classes=classes, **given)
        case "fab_t":
            aimed = {"multi_targeted": True, "n_classes": classes}
            return torchattacks.FAB(task.model, steps=steps, **aimed, **given)
        case _:
            return torchattacks.Square(task.model, n_queries=queries, **given)
