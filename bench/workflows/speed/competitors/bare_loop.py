"""The bare loop: only the model passes of an attack, as a lower bound on time.

For each eps as many forward and input-gradient passes as the attack has steps, then one forward
pass to count. Nothing is updated or projected: no loop that makes these passes one by one on the
same model can be faster.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from bench.core.rng import Noise
from bench.engine.acceleration import accelerate
from bench.workflows.speed.setup import Competitor, RaceTask, RunWork, WorkResult, count_correct
from bench.workflows.speed.workloads import Workload

NAME = "bare loop"
UNKNOWN = ("apgd_t", "fab_t", "square", "autoattack")
"""Attacks whose passes depend on intermediate results, or need no gradients."""


def list_variants(work: Workload) -> Iterator[Competitor]:
    """List the ways in which this competitor runs a workload.

    Args:
        work: The workload.

    Yields:
        Competitors; one that cannot run the workload says why.
    """
    if work.attack in UNKNOWN:
        return
    note = "the attack's forward and gradient passes alone; it attacks nothing"
    yield Competitor(name=NAME, prepare=partial(prepare, False), note=note)
    if work.attack == "fgsm":
        once = "the same with one gradient that serves all eps"
        yield Competitor(name="bare loop, one gradient", prepare=partial(prepare, True), note=once)
    copied = "the same passes on the copy that bench attacks"
    yield Competitor(name="bare loop on the copy", prepare=prepare_accelerated, note=copied)


def prepare(once: bool, task: RaceTask) -> RunWork:
    """Prepare the passes on noisy images, or on the clean ones for a single step.

    Attacked images cost a CPU up to a fifth more than clean ones, and noise as much.

    Args:
        once: Compute the gradients once for all eps.
        task: Model, images and parameters.

    Returns:
        The work to be timed.
    """
    ids = torch.arange(len(task.x))
    noise = Noise(0, NAME, ids, torch.zeros_like(ids)).uniform(task.x)
    noisy = (task.x + max(task.eps) * noise).clamp(0, 1)
    seen = task.x if task.steps == 1 else noisy

    def run(rows: int) -> WorkResult:
        for _ in range(1 if once else len(task.eps)):
            for x, y in zip(seen.split(rows), task.y.split(rows), strict=True):
                for _ in range(task.steps):
                    input_gradient(task.model, x, y)
        return WorkResult(
            None, [int(count_correct(task.model, noisy, task.y, rows)) for _ in task.eps]
        )

    return run


def prepare_accelerated(task: RaceTask) -> RunWork:
    """Prepare the passes on the accelerated model: the lower bound of bench with `stop = "never"`.

    Args:
        task: Model, images and parameters.

    Returns:
        The work to be timed.
    """
    copy = accelerate.accelerate_model(task.model, task.x, task.rows, fixed=True).model
    return prepare(False, replace(task, model=copy))


def input_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Compute the gradient of the summed cross-entropy with respect to the images.

    Args:
        model: Maps images to logits (n, classes).
        x: Images, (n, c, h, w).
        y: Labels, (n,).

    Returns:
        Gradient, shape as x.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        loss = nn.functional.cross_entropy(model(x), y, reduction="sum")
        return torch.autograd.grad(loss, x)[0]
