"""pyautoattack: AutoAttack as its authors wrote it, packaged; all of it, or one part alone.

It checks a model first (random answers, range, graph), which takes it some forward passes. Its
random numbers are drawn for a batch as a whole.
Source: Croce and Hein 2020, https://arxiv.org/abs/2003.01690, version 0.2.0
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from bench.workflows.speed.setup import Contestant, Made, Run, Task, library, looped
from bench.workflows.speed.workloads import Work

NAME = "pyautoattack"
PARTS = {"apgd": "apgd-ce", "apgd_t": "apgd-t", "fab_t": "fab-t", "square": "square"}
NOTES = dict.fromkeys([*PARTS, "autoattack"], "its own random starts; it checks the model first")


def enter(work: Work) -> Iterator[Contestant]:
    yield library(work, prepare, name=NAME, distribution=NAME, peer=NAME, notes=NOTES)


def prepare(task: Task) -> Run:
    def attack(x: Tensor, y: Tensor, eps: float) -> Made:
        x_adv, _ = _adversary(task, eps).run_standard_evaluation(x, y, batch_size=len(x))
        return Made(x_adv)

    return lambda rows: looped(task, rows, attack)


def _adversary(task: Task, eps: float) -> Any:
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
