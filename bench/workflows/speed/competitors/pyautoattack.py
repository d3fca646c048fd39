"""pyautoattack: AutoAttack as its authors wrote it, packaged; all of it, or one part alone.

It first checks the model (random outputs, range, graph) with some forward passes. Its random
numbers are drawn for a batch as a whole.
Source: Croce and Hein 2020, https://arxiv.org/abs/2003.01690, version 0.2.0
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

NAME = "pyautoattack"
PARTS = {"apgd": "apgd-ce", "apgd_t": "apgd-t", "fab_t": "fab-t", "square": "square"}
NOTES = dict.fromkeys([*PARTS, "autoattack"], "its own random starts; it checks the model first")


def list_variants(work: Workload) -> Iterator[Competitor]:
    """List the ways in which this competitor runs a workload.

    Args:
        work: The workload.

    Yields:
        Competitors; one that cannot run the workload says why.
    """
    yield library_competitor(work, prepare, name=NAME, distribution=NAME, peer=NAME, notes=NOTES)


def prepare(task: RaceTask) -> RunWork:
    """Prepare the work; see `Competitor.prepare`.

    Args:
        task: Model, images and parameters.

    Returns:
        The work to be timed.
    """

    def attack(x: Tensor, y: Tensor, eps: float) -> BatchResult:
        x_adv, _ = _adversary(task, eps).run_standard_evaluation(x, y, batch_size=len(x))
        return BatchResult(x_adv)

    return lambda rows: run_library_loop(task, rows, attack)


def _adversary(task: RaceTask, eps: float) -> Any:
    from pyautoattack import AutoAttack

    adversary = AutoAttack(
        task.model, norm="Linf", eps=eps, device=task.device, seed=0, version="standard"
    )
    params, attack = task.params, task.work.attack
    if attack in PARTS:
        adversary.attacks_to_run = [PARTS[attack]]
    adversary.square.n_queries = params.queries if attack == "autoattack" else params.steps
    for each in (adversary.apgd, adversary.apgd_targeted, adversary.fab):
        each.n_iter = params.steps
    targets = min(getattr(params, "targets", 9), task.classes - 1)
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = targets
    return adversary
