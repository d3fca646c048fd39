"""The Adversarial Robustness Toolbox: its PyTorch estimator with clip_values, arrays in and out.

Source: Nicolae et al. 2018, https://arxiv.org/abs/1807.01069
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from bench.workflows.speed.setup import (
    Competitor,
    RaceTask,
    RunWork,
    WorkResult,
    count_correct,
    library_competitor,
)
from bench.workflows.speed.workloads import Workload

LOGGED = "predicts clean and attacked images again for its log"
NOTES = {
    "fgsm": "not called at eps = 0, which it refuses",
    "pgd": f"its own random starts; {LOGGED}",
    "bim": LOGGED,
    "mifgsm": LOGGED,
}
DISTRIBUTION = "adversarial-robustness-toolbox"


def list_variants(work: Workload) -> Iterator[Competitor]:
    """List the ways in which this competitor runs a workload.

    Args:
        work: The workload.

    Yields:
        Competitors; one that cannot run the workload says why.
    """
    yield library_competitor(
        work, prepare, name="ART", distribution=DISTRIBUTION, peer="art", notes=NOTES
    )


def prepare(task: RaceTask) -> RunWork:
    """Prepare the work; see `Competitor.prepare`.

    Args:
        task: Model, images and parameters.

    Returns:
        The work to be timed.
    """
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

    estimator = PyTorchClassifier(
        model=task.model,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(task.x.shape[1:]),
        nb_classes=task.classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if task.device.type == "cuda" else "cpu",
    )
    x, y = task.x.cpu().numpy(), task.y.cpu().numpy()

    def run(rows: int) -> WorkResult:
        x_adv = task.x.new_empty(len(task.eps), *task.x.shape)
        right = torch.zeros(len(task.eps), dtype=torch.int64, device=task.device)
        for index, eps in enumerate(task.eps):
            if eps > 0:
                attack = _attack(evasion, estimator, task, eps, rows)
                x_adv[index] = torch.from_numpy(attack.generate(x=x, y=y))
            else:
                x_adv[index] = task.x
            right[index] = count_correct(task.model, x_adv[index], task.y, rows)
        return WorkResult(x_adv, right.tolist())

    return run


def _attack(evasion: Any, estimator: Any, task: RaceTask, eps: float, rows: int) -> Any:
    if task.work.attack == "fgsm":
        return evasion.FastGradientMethod(estimator, eps=eps, batch_size=rows)
    settings: dict[str, Any] = {
        "eps": eps,
        "eps_step": task.alpha(eps),
        "max_iter": task.steps,
        "batch_size": rows,
        "verbose": False,
    }
    match task.work.attack:
        case "pgd":
            starts = int(task.params.random_start)
            return evasion.ProjectedGradientDescent(estimator, num_random_init=starts, **settings)
        case "bim":
            return evasion.BasicIterativeMethod(estimator, **settings)
        case _:
            decay = task.params.decay
            return evasion.MomentumIterativeMethod(estimator, decay=decay, **settings)
